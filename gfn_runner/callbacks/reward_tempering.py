"""Reward tempering: the temperature T of the posterior R^(1/T) as a schedule over optimizer steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import lightning as L
from pydantic import Field

from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.tasks.base import GFlowNetModule


class RewardTempering(L.Callback):
    """Sets ``module.reward_temperature`` before every batch.

    Args:
        start, end: temperatures, > 0.
        steps: optimizer steps from one to the other; 0 means ``end`` from the first step on.
        shape: ``linear``, ``cosine`` (slow at both ends) or ``geometric`` (equal ratios).
    """

    def __init__(
        self,
        start: Annotated[float, Field(gt=0)] = 1.0,
        end: Annotated[float, Field(gt=0)] = 1.0,
        steps: Annotated[int, Field(ge=0)] = 0,
        shape: Literal["linear", "cosine", "geometric"] = "linear",
    ) -> None:
        self.schedule = Schedule(start, end, steps, shape)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: GFlowNetModule, batch: Any, batch_idx: int
    ) -> None:
        module.reward_temperature = self.schedule(trainer.global_step)


def reward_schedule(trainer: L.Trainer) -> Schedule:
    """The run's reward temperature by optimizer step; 1 where the callback is removed."""
    tempering = find_callback(trainer, RewardTempering)
    return tempering.schedule if tempering is not None else Schedule()
