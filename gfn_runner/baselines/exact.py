"""Samples from the true posterior, for tasks that enumerate their strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from gfn_runner.baselines.base import Baseline, Rows, draw_row
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import Drawing, string_scores, support_strings


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Exact(Baseline):
    """Samples from the true posterior, for tasks that enumerate their strings: an upper bound."""

    label: ClassVar[str] = "exact"

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        without = [c.key for c in data.evaluation if not task.support(c)]
        if without:
            yield Problem(
                "baseline",
                f"exact, but task {task.name} cannot list the strings of {len(without)} conditions, "
                f"e.g. {without[0]!r}",
                "a task that lists them (random_number), or baseline=resampling for the limit of many "
                "draws",
            )

    def rows(self, drawing: Drawing) -> Rows:
        """Yield one row, ``exact``: strings of the task's support in proportion to R^(1/T).

        log q of its samples is that of the posterior, log R/T − log Z, with Z summed over the support.
        """
        drawn = draw_row(drawing, "exact", "exact", drawing.seed, draw=partial(_draw, drawing))
        yield "exact", [_with_density(samples, drawing.temperature) for samples in drawn]


def _draw(
    d: Drawing, conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
) -> Trajectories:
    """Draw ``n`` strings from each condition's posterior, ignoring the sampling temperature ``at``."""
    parts = []
    for place, condition in enumerate(conditions):
        listed = support_strings(d, condition)
        log_reward_N, _, _ = string_scores(d, [condition], listed)
        share_N = (log_reward_N.double() / d.temperature).softmax(dim=0)
        chosen = torch.multinomial(share_N, n, replacement=True, generator=generator)
        rows = listed.rows(chosen)
        parts.append(
            dataclasses.replace(rows, condition_B=torch.full_like(rows.condition_B, place))
        )
    return Trajectories.concatenated(parts)


def _with_density(samples: ConditionSamples, temperature: float) -> ConditionSamples:
    support_N = torch.tensor(samples.support_log_reward, dtype=torch.float64) / temperature
    log_z = float(support_N.logsumexp(dim=0))
    return dataclasses.replace(
        samples,
        log_pf=[value / temperature - log_z for value in samples.log_reward],
        support_log_pf=(support_N - log_z).tolist(),
        # The sample at temperature 0 comes from the base model, not from the posterior.
        greedy=None,
        greedy_answer_log_probs=(),
    )
