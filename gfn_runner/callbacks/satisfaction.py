"""Warnings about conditions whose samples never satisfy their constraints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
from pydantic import Field

from gfn_runner.data.conditions import Condition
from gfn_runner.data.trajectories import StepOutput
from gfn_runner.distributed.ranks import all_gather, is_rank_zero
from gfn_runner.rewards.reward import CheckableConstraint
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)


class SatisfactionCallback(L.Callback):
    """Counts fresh samples of each condition until one satisfies all its constraints.

    Most unsatisfiable constraints are rejected before training. If this is undecidable, e.g. for a pattern
    combined with words, the only sign is that many samples of a condition never satisfy it.

    Args:
        warn_after: number of fresh samples of one condition, none of which satisfies its constraints, after
            which to log a warning; 0 disables it.

    Attributes:
        draws: number of fresh samples of each condition whose constraints no sample has satisfied yet.
        met: keys of the conditions with a sample that did.
    """

    def __init__(self, warn_after: Annotated[int, Field(ge=0)] = 256) -> None:
        self.warn_after = warn_after
        self.draws: dict[str, int] = {}
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
            if condition.key not in self.met:
                text = module.lm.decode(ids)
                self._count(condition, text, constraints)

    def _count(
        self, condition: Condition, text: str, constraints: Sequence[CheckableConstraint]
    ) -> None:
        key = condition.key
        if all(constraint.satisfied(condition, text) for constraint in constraints):
            self.met.add(key)
            self.draws.pop(key, None)
            return
        self.draws[key] = self.draws.get(key, 0) + 1
        if self.draws[key] == self.warn_after:
            logger.warning(
                "none of %d samples of condition %r met its constraints, the last one was %r; perhaps no "
                "string can (callbacks.satisfaction.warn_after)",
                self.draws[key],
                key,
                text,
            )

    def on_fit_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self.load_state_dict(self.state_dict())
        if self.draws and self.warn_after and is_rank_zero():
            key = max(self.draws, key=self.draws.__getitem__)
            logger.warning(
                "no sample met the constraints of %d of %d conditions; e.g. none of %r in %d samples",
                len(self.draws),
                len(self.draws) + len(self.met),
                key,
                self.draws[key],
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the merged state of all ranks. Must be called on every rank."""
        draws: dict[str, int] = {}
        met: set[str] = set()
        for own_draws, own_met in all_gather((self.draws, self.met)):
            draws |= {key: max(count, draws.get(key, 0)) for key, count in own_draws.items()}
            met |= own_met
        draws = {key: count for key, count in draws.items() if key not in met}
        return {"draws": draws, "met": sorted(met)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.draws, self.met = dict(state["draws"]), set(state["met"])
