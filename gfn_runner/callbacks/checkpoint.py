"""Checkpoints of adapter, optimizer, buffer and schedules, without the base model's weights."""

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
_CHECKSUM = "sha256"  # stored at the end of the file


class AdapterCheckpoint(L.Callback):
    """Keeps the latest states, saved every ``every_n_steps`` optimizer steps, at the end and on interruption.

    The latest rather than the best by reward, since a policy that collapses onto one string has the best
    mean reward. (Lightning's ``ModelCheckpoint`` overwrites the last checkpoint under a fixed name; here
    a new file is complete before an old one is removed.) It must come after the callbacks whose state it
    saves, so that they have finished the step.

    If a checkpoint cannot be written (e.g. the disk is full), this is reported once and the next one is tried
    as usual; training continues, and the last good one is kept. The same applies to non-finite states.
    """

    def __init__(
        self,
        every_n_steps: Annotated[int, Field(ge=1)] = 50,
        keep: Annotated[int, Field(ge=1)] = 2,
    ) -> None:
        self.every_n_steps, self.keep = every_n_steps, keep
        self.folder = Path()
        self.saved_step = -1
        self._step = 0  # optimizer steps at the end of the latest batch
        self._warned = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.folder = Path(trainer.default_root_dir) / "checkpoints"

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # The checkpoint that a run was resumed from is in this folder.
        self._step = trainer.global_step
        self.saved_step = self._step if _path(self.folder, self._step).is_file() else -1

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        # While gradients accumulate between the batches of a step, do not retry a failed save, since a
        # checkpoint does not contain gradients.
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        problem = self._problem(trainer)
        if problem is not None and is_rank_zero():
            logger.warning(
                "the state of step %d, the last one, is NOT saved: %s; a resumed run starts from "
                "the checkpoint before it, if there is one",
                trainer.global_step,
                problem,
            )

    def save(self, trainer: L.Trainer) -> bool:
        """Save the state of this optimizer step, then remove checkpoints beyond the number to keep.

        Returns:
            Whether the state of this step is on disk.
        """
        problem = self._problem(trainer)
        step, every = trainer.global_step, self.every_n_steps
        last = step >= trainer.max_steps  # on_train_end retries and reports
        if problem is not None and not last and not self._warned and is_rank_zero():
            following = min((step // every + 1) * every, trainer.max_steps)
            logger.warning(
                "no checkpoint at step %d: %s; training continues, the next attempt is at step %d",
                step,
                problem,
                following,
            )
        self._warned = problem is not None and (self._warned or not last)
        return problem is None

    def _problem(self, trainer: L.Trainer) -> str | None:
        """Write the state of this step unless already written; return why this failed, or ``None``."""
        if trainer.global_step == self.saved_step:
            return None
        for log in trainer.loggers:
            log.save()
        # Metrics must be on disk before the checkpoint. Only rank 0 has loggers.
        if broadcast(any(getattr(log, "waiting", ()) for log in trainer.loggers)):
            return "metrics.jsonl cannot be written"
        module: Any = trainer.lightning_module
        # A non-finite policy cannot be resumed, and would displace good states.
        broken = broadcast(module.not_finite())
        if broken is not None:
            return f"{broken} is not finite: lower optimizer.lr"
        problem = self._write(trainer)
        if problem is None:
            self.saved_step = trainer.global_step
        return problem

    def _write(self, trainer: L.Trainer) -> str | None:
        """Write the state of this step; return why this failed, or ``None``."""
        trainer.save_checkpoint(_path(self.folder, trainer.global_step))
        problem = None
        if is_rank_zero():
            writer = trainer.strategy.checkpoint_io
            assert isinstance(writer, DurableCheckpointIO)  # set by train.py
            problem = writer.problem
            if problem is None:
                self._remove_old(trainer.global_step)
        # After this, every rank sees this checkpoint as the latest one.
        problem = broadcast(problem)
        barrier()
        return problem

    def _remove_old(self, step: int) -> None:
        """Remove checkpoints beyond the number to keep, and partial files left by killed processes.

        Checkpoints of later steps are removed as well: they are from an earlier process, their steps are
        repeated, and their lines are cut from the log.
        """
        own, found = _path(self.folder, step), sorted(self.folder.glob(_PATTERN))
        old = [path for path in found if path < own]
        kept = [*old[max(0, len(old) + 1 - self.keep) :], own]
        removed = [path for path in found if path not in kept]
        for path in [*removed, *self.folder.glob("step-*.part")]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s cannot be removed (%s) and is left in place", path, error)


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint with its checksum to a temporary file, syncs it to disk, and renames it.

    Attributes:
        problem: why the latest one could not be written, or ``None``. Raising would leave the other ranks
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
                # Appended after torch's data, which torch.load ignores.
                file.write(hashlib.file_digest(written, _CHECKSUM).digest())
        except (OSError, RuntimeError) as error:  # RuntimeError: from torch's zip writer
            # Torch's error message does not mention that the disk is full.
            free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.is_dir() else 0
            self.problem = f"{str(error).splitlines()[0]} ({free:.1f} MiB free there)"


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:07d}.ckpt"


def _found(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, latest first.

    On a network file system, a listing may be a minute old. Looking up a file by name is reliable, and the
    log, which is on disk before the checkpoint is, has all steps that may have one.
    """
    logged = {record["step"] for record in read_metrics(folder.with_name("metrics.jsonl"))}
    named = {path for path in (_path(folder, step) for step in logged) if path.is_file()}
    return sorted({*named, *folder.glob(_PATTERN)}, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the valid checkpoint with the most optimizer steps in ``folder``, or ``None``.

    Truncated or corrupted files are skipped with a warning. They are kept under another name, so that a
    resumed run never mistakes them for its own.

    Raises:
        UserError: if a file cannot be read at present, so its validity is unknown; no file is changed.
    """
    for path in _found(folder):
        try:
            damage = checkpoint_damage(path)
        except FileNotFoundError:
            continue  # an old one, removed by the process that writes there
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
            raise UserError.one(
                "resume",
                f"{path} cannot be read: {reason}",
                "a checkpoint that can be read",
                "try again later; without this file the run resumes from the checkpoint before it",
            ) from error
        if damage is None:
            return path
        aside = path.with_suffix(_DAMAGED)
        with contextlib.suppress(OSError):
            path.rename(aside)
        logger.warning("%s is damaged (%s): using the checkpoint before it", aside, damage)
    return None


def damaged_checkpoints(folder: Path) -> int:
    """Return how many checkpoints in ``folder`` have been found damaged, by this or an earlier process."""
    return len(list(folder.glob(f"step-*{_DAMAGED}")))


def checkpoint_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, or ``None``, by the checksum in its last bytes.

    Raises:
        OSError, MemoryError: if the file cannot be read.
    """
    content = memoryview(path.read_bytes())
    size = hashlib.new(_CHECKSUM).digest_size
    if hashlib.new(_CHECKSUM, content[:-size]).digest() == content[-size:]:
        return None
    return "its content does not match its checksum"
