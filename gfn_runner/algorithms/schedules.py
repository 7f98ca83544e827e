"""Schedules: a number as a pure function of the optimizer step; nothing to save, nothing to resume."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Schedule:
    """From ``start`` to ``end`` over ``steps`` optimizer steps, then constant.

    Attributes:
        start, end: values, > 0.
        steps: length of the way; 0 means ``end`` from the first step on.
        shape: ``linear``, or ``cosine`` (slow at both ends), or ``geometric`` (equal ratios).
    """

    start: Annotated[float, Field(gt=0)] = 1.0
    end: Annotated[float, Field(gt=0)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 0
    shape: Literal["linear", "cosine", "geometric"] = "linear"

    def __call__(self, step: int) -> float:
        """The value at optimizer step ``step``, counted from 0."""
        if step >= self.steps:
            return self.end
        done = max(0, step) / self.steps
        if self.shape == "geometric":
            return self.start * (self.end / self.start) ** done
        if self.shape == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done


def warmup_factor(step: int, warmup: int) -> float:
    """Factor on the learning rate: 1/warmup at step 0 (never 0), 1 from step ``warmup − 1`` on."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
