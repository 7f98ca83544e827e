"""Samples of the true posterior, for tasks that list their strings: the ceiling of every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from gfn_runner.baselines.methods import Drawing, Exact, Rows
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import draw_answers, string_scores
from gfn_runner.runtime.seeds import torch_generator_for


def exact_rows(drawing: Drawing, options: Exact) -> Rows:
    """One row, ``exact``: strings of the task's support in proportion to R^(1/T).

    log q of its samples is the posterior's, log R/T − log Z, with Z summed over the support.
    """
    d = drawing

    def draw(
        conditions: Sequence[Condition], n: int, at: float, generator: torch.Generator
    ) -> Trajectories:
        parts = []
        for place, condition in enumerate(conditions):
            listed = _support(d, condition)
            log_reward_N, _, _ = string_scores(d.lm, d.task, d.rule, [condition], listed)
            share_N = (log_reward_N.double() / d.temperature).softmax(dim=0)
            chosen = torch.multinomial(share_N, n, replacement=True, generator=generator)
            rows = listed.rows(chosen)
            parts.append(
                dataclasses.replace(rows, condition_B=torch.full_like(rows.condition_B, place))
            )
        return Trajectories.concatenated(parts)

    generator = torch_generator_for(d.lm.device, "exact", d.seed)
    with d.lm.base():
        drawn = draw_answers(
            d.lm,
            d.task,
            d.rule,
            d.conditions,
            d.options,
            generator,
            draw=draw,
            name="evaluation, exact",
        )
    yield "exact", [_with_density(samples, d.temperature) for samples in drawn]


def _support(d: Drawing, condition: Condition) -> Trajectories:
    strings = [d.lm.encode(text) for text in d.task.support(condition)]
    return Trajectories.from_rows(
        strings, [(True,) * len(ids) for ids in strings], [0] * len(strings), d.lm.device
    )


def _with_density(samples: ConditionSamples, temperature: float) -> ConditionSamples:
    support_N = torch.tensor(samples.support_log_reward, dtype=torch.float64) / temperature
    log_z = float(support_N.logsumexp(dim=0))
    return dataclasses.replace(
        samples,
        log_pf=[value / temperature - log_z for value in samples.log_reward],
        support_log_pf=(support_N - log_z).tolist(),
        # A string at temperature 0 is the base model's, not the posterior's.
        greedy=None,
        greedy_answer_log_probs=(),
    )
