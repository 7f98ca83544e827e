"""Exact sampling in the limit: the base model's own samples, resampled by importance; trains nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from gfn_runner.baselines.methods import Drawing, Resampling, Rows
from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.tasks.base import Task


def resample_base_model(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    *,
    seed: int,
    temperature: float,
) -> list[ConditionSamples]:
    """Draw ``options.resampled`` strings of the base model and keep some by R^(1/T) / p.

    Sampling importance resampling (Rubin 1987): as the number of draws grows, what is kept is
    distributed as the posterior. Kept with replacement: where few draws carry all the weight, there
    are few different strings, which is what their effective sample size says.

    Args:
        lm, task, rule, conditions: as for the policy.
        options: ``singles`` strings are kept for each condition.
        seed: of everything drawn.
        temperature: reward temperature T.
    """
    drawing = Drawing(lm, task, rule, conditions, options, seed, temperature)
    drawn = _draws(drawing, conditions, options.resampled)
    return [
        _kept(samples, options.singles, seed=seed, temperature=temperature) for samples in drawn
    ]


def _draws(drawing: Drawing, conditions: Sequence[Condition], n: int) -> list[ConditionSamples]:
    """``n`` strings of the bare base model for each condition."""
    d, many = drawing, dataclasses.replace(drawing.options, singles=n, votes=0)
    generator = torch_generator_for(d.lm.device, "resampling", d.seed)
    with d.lm.base():
        return draw_answers(
            d.lm, d.task, d.rule, conditions, many, generator, name="evaluation, resampling"
        )


def resampled_rows(drawing: Drawing, options: Resampling) -> Rows:
    """For every number n of draws: ``best_of_n``, the likeliest under R, and ``resampled_n``.

    What is kept of n draws are ``options.singles`` strings and ``options.votes`` more for the vote, by
    importance; of the best there is one, which votes alone. All numbers share the same draws, of which
    they use the first n: the rows differ by compute alone.
    """
    d, numbers = drawing, options.draws
    asked = (
        list(d.conditions)
        if options.answers_known
        else [d.task.without_answer(c) for c in d.conditions]
    )
    drawn = _draws(d, asked, max(numbers))

    def told(samples: Sequence[ConditionSamples]) -> list[ConditionSamples]:
        """Samples of the conditions as they are; log R of another posterior is none of theirs."""
        return [
            s if c is a else dataclasses.replace(s, condition=c, log_reward=(), log_pf=())
            for s, a, c in zip(samples, asked, d.conditions, strict=True)
        ]

    for n in numbers:
        first = [_some(samples, range(n)) for samples in drawn]
        yield f"best_of_{n}", told([_best(samples) for samples in first])
        kept = [
            _kept(
                s, d.options.singles, seed=d.seed, temperature=d.temperature, votes=d.options.votes
            )
            for s in first
        ]
        yield f"resampled_{n}", told(kept)


def _best(samples: ConditionSamples) -> ConditionSamples:
    """The one string with the largest log R, also as the only vote."""
    best = max(range(len(samples.log_reward)), key=samples.log_reward.__getitem__)
    one = _some(samples, [best])
    # It is drawn by no density that could be written down.
    return dataclasses.replace(one, votes=one.singles, vote_answer_log_probs=one.answer_log_probs)


_COLUMNS = (
    "singles",
    "log_reward",
    "log_pf",
    "log_likelihood",
    "term_log_probs",
    "answer_log_probs",
)


def _some(samples: ConditionSamples, places: Sequence[int]) -> ConditionSamples:
    """Some of the singles; nothing that was drawn or scored beside them."""
    columns: dict[str, Any] = {
        name: [values[i] for i in places] if (values := getattr(samples, name)) else ()
        for name in _COLUMNS
    }
    return dataclasses.replace(
        samples,
        votes=(),
        vote_answer_log_probs=(),
        greedy=None,
        greedy_answer_log_probs=(),
        # The support was scored under the base model, which is not what is shown.
        support_log_reward=(),
        support_log_pf=(),
        **columns,
    )


def _kept(
    samples: ConditionSamples, n: int, *, seed: int, temperature: float, votes: int = 0
) -> ConditionSamples:
    """``n`` singles and ``votes`` votes, drawn with replacement by R^(1/T) / p."""
    phi_N = torch.tensor(samples.log_reward) / temperature - torch.tensor(samples.log_pf)
    phi_N = phi_N.masked_fill(~phi_N.isfinite(), -math.inf)
    if phi_N.isneginf().all():
        phi_N = torch.zeros_like(phi_N)
    rng = rng_for("resampling", seed, samples.condition.key)
    weight_N = phi_N.double().softmax(dim=0)
    chosen = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=n)
    voting = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=votes) if votes else []
    # The density of what is kept: that of the posterior, with Z as the draws estimate it.
    log_z = float(phi_N.logsumexp(dim=0)) - math.log(len(phi_N))
    log_pf = [samples.log_reward[i] / temperature - log_z for i in chosen]
    ess = 1 / float(weight_N.square().sum()) / len(phi_N)
    answers = samples.answer_log_probs
    return dataclasses.replace(
        _some(samples, chosen),
        log_pf=log_pf,
        draws_ess=ess,
        votes=tuple(samples.singles[i] for i in voting),
        vote_answer_log_probs=[answers[i] for i in voting] if answers else (),
    )
