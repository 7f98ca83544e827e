"""Reward tempering: a schedule over optimizer steps for the temperature T of the posterior R^(1/T)."""

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
        start, end: initial and final temperature, > 0.
        steps: optimizer steps from ``start`` to ``end``; 0 means ``end`` from the first step on.
        shape: ``linear``, ``cosine`` (slow at both ends) or ``geometric`` (constant ratio).
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
    """Return the run's schedule of reward temperatures; constant 1 without the callback."""
    tempering = find_callback(trainer, RewardTempering)
    return tempering.schedule if tempering is not None else Schedule()
