"""Signals: a run that is to stop saves its state at the end of the step, then ends."""

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
# Where ranks have received different ones, the first of these counts.
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
_SECOND = (
    b"\ngfn_runner: stops at the end of this step; Ctrl-C again stops at once and saves nothing\n"
)
_WAIT_FOR_END = 300  # seconds that a rank waits to be ended with its job


class PreemptionCallback(L.Callback):
    """Watches for signals while a run trains, and comes after the checkpoint.

    - SIGUSR2 saves. Where a launcher listens to it (submitit: the job goes back into SLURM's queue), it
      gets the signal then; else training goes on.
    - SIGTERM saves and ends the run with exit code 143. A job that submitit has given to SLURM, and that
      SLURM still counts as running, so nobody has cancelled or requeued it, goes back into the queue.
    - SIGINT (Ctrl-C) saves and ends the run with exit code 130; a second one ends it at once.
    - SIGHUP (its terminal is closed) saves and ends the run with exit code 129; not under ``nohup``.

    It is enough that one rank of several receives the signal. A signal in an evaluation on the way ends
    the run after the batch that is being drawn; the evaluation is made anew when the run goes on. One
    that comes while it is measured, or while the last checkpoint is written, takes effect after that.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}  # handlers, while signals are watched for
        self._launcher: Any = None
        self._step = 0

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # Lightning puts handlers of its own in between.
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
                os.write(2, _SECOND)  # print is not safe within a handler
        if number != signal.SIGUSR2 or self.received is None:  # to save only takes no end back
            self.received = signal.Signals(number)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if trainer.global_step != self._step:  # else gradients are accumulated, which none saves
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
        """What any rank has received; every rank has to call it."""
        found = set(all_gather(self.received))
        return next((number for number in _WATCHED if number in found), None)

    def _obey(self, trainer: L.Trainer, number: signal.Signals | None) -> None:
        if number is None:
            return
        if self.received == number:  # else another has come meanwhile
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
        self._obey(trainer, self._received())  # the checkpoint has had its turn
        self._unwatch()
        if self.received is not None:
            # It has come since they were asked, and is for whoever listens from here on.
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
    """Whether what a terminal sends is not for this process: it runs with ``&``, or under ``nohup``."""
    of_terminal = number in (signal.SIGINT, signal.SIGHUP)
    return of_terminal and signal.getsignal(number) is signal.SIG_IGN


def _hand_over(launcher: Callable[[int, Any], Any]) -> NoReturn:
    """Let submitit put the job back into the queue; it does so in the first process alone."""
    launcher(signal.SIGUSR2, None)
    # It has not ended this process: that is another one's work, with which the whole job ends.
    logger.info("rank %d waits for the end of its job", rank())
    time.sleep(_WAIT_FOR_END)
    raise SystemExit(128 + signal.SIGUSR2)


def job_is_running() -> bool:
    """Whether this is a job that submitit has given to SLURM, and that SLURM counts as running.

    One that is cancelled or requeued is so no more. A sweep on this machine may itself stand within a job
    of SLURM: that one is not its runs' to requeue.
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
    """Within it SIGUSR2 ends no process that has no handler for it: it only asks for a checkpoint."""
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
