"""Signal handling: save the training state at the end of the step, then end the run."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import lightning as L

from gfn_runner.callbacks.checkpoint import AdapterCheckpoint
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.distributed.ranks import all_gather, is_rank_zero, rank

logger = logging.getLogger(__name__)
# If ranks have received different signals, the first one in this order counts.
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
_SECOND = (
    b"\ngfn_runner: stops at the end of this step; Ctrl-C again stops at once and saves nothing\n"
)
_WAIT_FOR_END = 300  # seconds that a rank waits for its job to end


class PreemptionCallback(L.Callback):
    """Handles signals during training; must come after the checkpoint callback.

    - SIGUSR2 saves. If a launcher handles it (submitit, which requeues the SLURM job), it then receives the
      signal; otherwise training continues.
    - SIGTERM saves and ends the run with exit code 143. A job submitted by submitit that SLURM still reports
      as running, i.e. that was neither cancelled nor requeued, is requeued.
    - SIGINT (Ctrl-C) saves and ends the run with exit code 130; a second one ends it immediately.
    - SIGHUP (terminal closed) saves and ends the run with exit code 129; ignored under ``nohup``.

    It suffices if one of several ranks receives the signal. A signal in an evaluation during training ends
    the run after the current batch; the evaluation is repeated when the run is resumed. A signal received
    while metrics are computed, or while the last checkpoint is written, takes effect afterwards.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # previous handlers, while ours are installed
        self._launcher: Any = None
        self._step = 0

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # Lightning installs handlers of its own before training starts.
        self._launcher = signal.getsignal(signal.SIGUSR2)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.received, self._step = None, trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in _WATCHED if not _is_ignored(n)}

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            if is_rank_zero():
                os.write(2, _SECOND)  # print is not safe in a signal handler
        if number != signal.SIGUSR2 or self.received is None:  # saving must not cancel ending
            self.received = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if trainer.global_step != self._step:  # accumulated gradients are not saved
            self._step = trainer.global_step
            self._obey(trainer, self._received())

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, *_: Any
    ) -> None:
        if self._before and (number := self._received()) not in (None, signal.SIGUSR2):
            self._obey(trainer, number)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._before:
            self._obey(trainer, self._received())

    def _received(self) -> signal.Signals | None:
        """Return the signal received by any rank. Must be called on every rank."""
        found = set(all_gather(self.received))
        return next((number for number in _WATCHED if number in found), None)

    def _obey(self, trainer: L.Trainer, number: signal.Signals | None) -> None:
        if number is None:
            return
        if self.received == number:  # otherwise another one has arrived in the meantime
            self.received = None
        checkpoint = find_callback(trainer, AdapterCheckpoint)
        saved = checkpoint is not None and checkpoint.save(trainer)
        if is_rank_zero():
            folder = Path(trainer.default_root_dir)
            resumable = saved or any((folder / "checkpoints").glob("*.ckpt"))
            command = shlex.join(["python", "-m", "gfn_runner", f"resume={folder}"])
            logger.warning(
                "%s: the state of step %d %s%s",
                number.name,
                trainer.global_step,
                "is saved" if saved else "is not saved",
                f"; to resume from the newest checkpoint: {command}" if resumable else "",
            )
        requeues = callable(self._launcher)
        if number == signal.SIGUSR2 and not requeues:
            return
        self._unwatch()
        if requeues and (
            number == signal.SIGUSR2 or (number == signal.SIGTERM and job_is_running())
        ):
            _hand_over(self._launcher)
        raise SystemExit(128 + number)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._obey(trainer, self._received())  # the checkpoint callback has already run
        self._unwatch()
        if self.received is not None:
            # It arrived after the ranks were asked; leave it to the restored handler.
            signal.raise_signal(self.received)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        self._unwatch()

    def _unwatch(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _is_ignored(number: signal.Signals) -> bool:
    """Return whether a terminal's signals are ignored, as for a process started with ``&`` or ``nohup``."""
    of_terminal = number in (signal.SIGINT, signal.SIGHUP)
    return of_terminal and signal.getsignal(number) is signal.SIG_IGN


def _hand_over(launcher: Callable[[int, Any], Any]) -> NoReturn:
    """Let submitit requeue the job, which only the first process does."""
    launcher(signal.SIGUSR2, None)
    # This process has not ended: another one requeues the job, which ends all its processes.
    logger.info("rank %d is waiting for its job to end", rank())
    time.sleep(_WAIT_FOR_END)
    raise SystemExit(128 + signal.SIGUSR2)


def job_is_running() -> bool:
    """Return whether this is a job submitted to SLURM by submitit that SLURM reports as running.

    A cancelled or requeued job no longer is. A local sweep may itself run inside a SLURM job, which its runs
    must not requeue.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["scontrol", "-o", "show", "job", job]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return " JobState=RUNNING " in found.stdout
    return False


@contextlib.contextmanager
def usr2_spares() -> Iterator[None]:
    """Ignore SIGUSR2 within the context unless it has a handler: it only requests a checkpoint."""
    ends = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    )
    if ends:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGUSR2, signal.SIG_DFL)
