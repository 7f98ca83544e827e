"""Schedules of the reward temperature and of the learning rate, as functions of the optimizer step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Schedule:
    """Schedule from ``start`` to ``end`` over ``steps`` optimizer steps, then constant.

    Attributes:
        start, end: first and last value, > 0.
        steps: optimizer steps until ``end``; 0 means ``end`` from the first step on.
        shape: ``linear``, or ``cosine`` (slow at both ends), or ``geometric`` (equal ratios).
    """

    start: Annotated[float, Field(gt=0)] = 1.0
    end: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 0
    shape: Literal["linear", "cosine", "geometric"] = "linear"

    def __call__(self, step: int) -> float:
        """Return the value at optimizer step ``step``, counted from 0."""
        if step >= self.steps:
            return self.end
        done = max(0, step) / self.steps
        if self.shape == "geometric":
            return self.start * (self.end / self.start) ** done
        if self.shape == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done


def linear_schedule(
    optimizer: Optimizer,
    *,
    warmup_steps: Annotated[int, Field(ge=0)] = 10,
    decay: bool = False,
    total_steps: int,
    n_rounds: int = 1,
) -> LambdaLR:
    """Create linear warmup, then a constant or linearly decaying rate: the config group ``scheduler``.

    Args:
        optimizer: optimizer whose parameter groups' learning rates are the peaks.
        warmup_steps: optimizer steps of warmup, the first one at lr / warmup_steps.
        decay: whether the rate decays towards 0 at the last step, to no less than 0.001 of the peak.
        total_steps: optimizer steps of a round.
        n_rounds: rounds of EM; the schedule restarts with every E-step.
    """

    def factor(step: int) -> float:
        if n_rounds > 1:
            step %= total_steps
        if step < warmup_steps:
            return (step + 1) / warmup_steps  # never 0
        if not decay:
            return 1.0
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return max(1.0 - done, 1e-3)

    return LambdaLR(optimizer, factor)
