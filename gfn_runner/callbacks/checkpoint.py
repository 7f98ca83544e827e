"""Checkpoints: adapter, optimizer, buffer and schedules; never the base model's weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L

from gfn_runner.ranks import barrier, is_first, world
from gfn_runner.settings import CheckpointSettings

_PATTERN = "step-*.ckpt"


class AdapterCheckpoint(L.Callback):
    """Keeps the newest state: every ``every`` optimizer steps, at the end and at an interruption.

    The newest, not the best by reward: a policy that collapses onto one string has the best mean
    reward. (Lightning's ``ModelCheckpoint`` keeps the last one under a fixed name by overwriting it;
    here a new file is complete before the old one goes.) It belongs last in the list of callbacks,
    so that the others have finished their step.
    """

    def __init__(self, options: CheckpointSettings, folder: Path):
        self.options, self.folder = options, folder
        self.saved_step = -1

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step > 0 and trainer.global_step % self.options.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.save(trainer)

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        # After a mistake in a step (a NaN, say) the last good checkpoint is the one to keep. Of several
        # ranks the others may be anywhere, and a checkpoint needs them all.
        if isinstance(exception, KeyboardInterrupt) and world() == 1:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the state of this optimizer step, then remove older checkpoints."""
        step = trainer.global_step
        if step == self.saved_step:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:07d}.ckpt"
        unfinished = path.with_suffix(".part")
        trainer.save_checkpoint(unfinished)
        if is_first():
            os.replace(unfinished, path)
            for old in self.folder.glob(_PATTERN):
                if old != path:
                    old.unlink()
        # Whoever looks for the newest one next finds this.
        barrier()
        self.saved_step = step


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most optimizer steps in ``folder``, or ``None``."""
    found = sorted(folder.glob(_PATTERN))
    return found[-1] if found else None
