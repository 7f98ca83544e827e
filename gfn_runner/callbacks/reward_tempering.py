"""Tempering: writes the reward temperature, a pure function of the optimizer step; nothing to save."""

from __future__ import annotations

from typing import Any

import lightning as L

from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.module import GFlowNetModule


class TemperingCallback(L.Callback):
    """Sets ``module.reward_temperature`` before every batch."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule

    def on_train_batch_start(
        self, trainer: L.Trainer, module: GFlowNetModule, batch: Any, batch_idx: int
    ) -> None:
        module.reward_temperature = self.schedule(trainer.global_step)
