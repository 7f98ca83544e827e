"""Checkpoints: adapter, optimizer, buffer and schedules; never the base model's weights."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from pydantic import Field

from gfn_runner.distributed.ranks import barrier, broadcast, is_rank_zero
from gfn_runner.errors import UserError
from gfn_runner.runtime.files import atomic_writer
from gfn_runner.runtime.json_lines import read_metrics

logger = logging.getLogger(__name__)
_PATTERN = "step-*.ckpt"
_DAMAGED = ".damaged"
_CHECKSUM = "sha256"  # at the end of the file


class AdapterCheckpoint(L.Callback):
    """Keeps the newest states: every ``every_n_steps`` optimizer steps, at the end and at an interruption.

    The newest, not the best by reward: a policy that collapses onto one string has the best mean
    reward. (Lightning's ``ModelCheckpoint`` keeps the last one under a fixed name by overwriting it;
    here a new file is complete before an old one goes.) It belongs last in the list of callbacks,
    so that the others have finished their step.

    A checkpoint that cannot be written (a full disk) is reported once and tried again at the next turn;
    training goes on, and the last good one stays. So it is where policy or optimizer are not finite.
    """

    def __init__(
        self,
        every_n_steps: Annotated[int, Field(ge=1)] = 50,
        keep: Annotated[int, Field(ge=1)] = 2,
    ) -> None:
        self.every_n_steps, self.keep = every_n_steps, keep
        self.folder = Path()
        self.saved_step = -1
        self._step = 0  # optimizer steps at the end of the newest batch
        self._warned = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The checkpoint that a run goes on from lies there.
        self._step = trainer.global_step
        self.saved_step = self._step if _path(self.folder, self._step).is_file() else -1

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        # Between the batches of a step gradients are accumulated, which no checkpoint holds: a save that
        # has failed is not tried again there.
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        problem = self._problem(trainer)
        if problem is not None and is_rank_zero():
            logger.warning(
                "the state of step %d, the last one, is NOT saved: %s; a run that goes on does so from "
                "the checkpoint before it, if there is one",
                trainer.global_step,
                problem,
            )

    def save(self, trainer: L.Trainer) -> bool:
        """Write the state of this optimizer step, then remove what is older than is to be kept.

        Returns:
            Whether the state of this step is on the disk.
        """
        problem = self._problem(trainer)
        step, every = trainer.global_step, self.every_n_steps
        last = step >= trainer.max_steps  # the end of the training tries again, and tells
        if problem is not None and not last and not self._warned and is_rank_zero():
            following = min((step // every + 1) * every, trainer.max_steps)
            logger.warning(
                "no checkpoint at step %d: %s; training goes on, the next one is tried at step %d",
                step,
                problem,
                following,
            )
        self._warned = problem is not None and (self._warned or not last)
        return problem is None

    def _problem(self, trainer: L.Trainer) -> str | None:
        """Write the state of this step if it is not written yet; why it could not be, else ``None``."""
        if trainer.global_step == self.saved_step:
            return None
        for log in trainer.loggers:
            log.save()
        # What led here is on the disk before the checkpoint is. The first process alone has loggers.
        if broadcast(any(getattr(log, "waiting", ()) for log in trainer.loggers)):
            return "metrics.jsonl cannot be written"
        module: Any = trainer.lightning_module
        # Of a policy that is broken nothing can go on, and good states would have to go for it.
        broken = broadcast(module.not_finite())
        if broken is not None:
            return f"{broken} is not finite: lower optimizer.lr"
        problem = self._write(trainer)
        if problem is None:
            self.saved_step = trainer.global_step
        return problem

    def _write(self, trainer: L.Trainer) -> str | None:
        """Why the state of this step is not on the disk; ``None`` where it is."""
        trainer.save_checkpoint(_path(self.folder, trainer.global_step))
        problem = None
        if is_rank_zero():
            writer = trainer.strategy.checkpoint_io
            assert isinstance(writer, DurableCheckpointIO)  # train.py puts it there
            problem = writer.problem
            if problem is None:
                self._remove_old(trainer.global_step)
        # Whoever looks for the newest one next finds this.
        problem = broadcast(problem)
        barrier()
        return problem

    def _remove_old(self, step: int) -> None:
        """Remove what is older than is to be kept, seen from this step, and what a killed process had half written.

        What is of later steps goes as well: a process before has made them, they are made again, and their
        lines are cut off the log.
        """
        own, found = _path(self.folder, step), sorted(self.folder.glob(_PATTERN))
        old = [path for path in found if path < own]
        kept = [*old[max(0, len(old) + 1 - self.keep) :], own]
        removed = [path for path in found if path not in kept]
        for path in [*removed, *self.folder.glob("step-*.part")]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s cannot be removed (%s): it is left there", path, error)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint with its checksum beside its place, makes sure that it is on the disk, and renames it.

    Attributes:
        problem: why the newest one could not be written, or ``None``. Raising would leave the other ranks
            waiting for this one.
    """

    problem: str | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        path, self.problem = Path(path), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_writer(path, "w+b") as file:
                torch.save(checkpoint, file)
                file.seek(0)
                written: Any = file
                # After the end of torch's file, where torch.load does not look.
                file.write(hashlib.file_digest(written, _CHECKSUM).digest())
        except (OSError, RuntimeError) as error:  # torch's zip writer raises the latter
            # Torch's words for a full disk do not say so.
            free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
            self.problem = f"{str(error).splitlines()[0]} ({free:.1f} MiB are free there)"


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.ckpt"


def _found(folder: Path) -> list[Path]:
    """Checkpoints in a run's folder of them, the newest first.

    A listing of a file system of the network may be a minute old. What is asked for by its name is there,
    and the log, which is on the disk before a checkpoint is, has the steps that may have one.
    """
    logged = {record["step"] for record in read_metrics(folder.with_name("metrics.jsonl"))}
    named = {path for path in (_path(folder, step) for step in logged) if path.is_file()}
    return sorted({*named, *folder.glob(_PATTERN)}, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The good checkpoint of the most optimizer steps in ``folder``, or ``None``.

    What is cut off or was changed on the disk is passed over with a line in the log. It stays there,
    under another name, so that a run that goes on never takes it for its own.

    Raises:
        UserError: if one cannot be read now, which tells nothing of what is in it; all stay as they are.
    """
    for path in _found(folder):
        try:
            damage = checkpoint_damage(path)
        except FileNotFoundError:
            continue  # the process that writes there has removed an old one
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
            raise UserError.one(
                "resume",
                f"{path} cannot be read: {reason}",
                "a checkpoint that can be read",
                "try again later; without this file the run goes on from the checkpoint before it",
            ) from error
        if damage is None:
            return path
        aside = path.with_suffix(_DAMAGED)
        with contextlib.suppress(OSError):
            path.rename(aside)
        logger.warning("%s is damaged (%s): the checkpoint before it is used", aside, damage)
    return None


def damaged_checkpoints(folder: Path) -> int:
    """How many checkpoints in ``folder`` were found to be damaged, by this process or one before."""
    return len(list(folder.glob(f"step-*{_DAMAGED}")))


def checkpoint_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, or ``None``: its last bytes are a checksum of all before.

    Raises:
        OSError, MemoryError: if the file cannot be read.
    """
    content = memoryview(path.read_bytes())
    size = hashlib.new(_CHECKSUM).digest_size
    if hashlib.new(_CHECKSUM, content[:-size]).digest() == content[-size:]:
        return None
    return "its content does not match its checksum"
