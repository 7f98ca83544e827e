"""Warn where no sample of a condition ever meets its constraints."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Annotated, Any

import lightning as L
from pydantic import Field

from gfn_runner.data.trajectories import StepOutput
from gfn_runner.rewards.reward import CheckableConstraint
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)


class SatisfactionCallback(L.Callback):
    """Counts fresh samples of each condition until one meets every constraint.

    A constraint that no string can meet is mostly refused before training. Where that cannot be decided —
    a pattern against words, say — a condition with many draws and none that meets it is all one sees.

    Args:
        warn_after: fresh samples of one condition in this start of the run, none of which met its constraints,
            after which the log has a warning; 0 for none.

    Attributes:
        draws: fresh samples of each condition that has not had one that meets its constraints.
        met: keys of the conditions that have.
    """

    def __init__(self, warn_after: Annotated[int, Field(ge=0)] = 256) -> None:
        self.warn_after = warn_after
        self.draws: Counter[str] = Counter()
        self.met: set[str] = set()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        output: StepOutput = outputs["output"]
        constraints = [c for c in module.constraints() if isinstance(c, CheckableConstraint)]
        if not constraints or output.from_replay or self.warn_after == 0:
            return
        trajectories = output.trajectories
        places, strings = trajectories.condition_B.tolist(), trajectories.strings()
        for place, ids in zip(places, strings, strict=True):
            condition = output.conditions[place]
            if condition.key in self.met:
                continue
            text = module.lm.decode(ids)
            if all(constraint.satisfied(condition, text) for constraint in constraints):
                self.met.add(condition.key)
                continue
            self.draws[condition.key] += 1
            if self.draws[condition.key] == self.warn_after:
                logger.warning(
                    "none of %d samples of condition %r met its constraints, the last one was %r; perhaps "
                    "no string can (callbacks.satisfaction.warn_after)",
                    self.warn_after,
                    condition.key,
                    text,
                )
