"""Exact sampling in the limit: the base model's own samples, resampled by importance; trains nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from gfn_runner.evaluation import draw_answers
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.randomness import rng_for, torch_generator_for
from gfn_runner.settings import EvaluationSettings
from gfn_runner.tasks.base import ConditionSamples, Task
from gfn_runner.types import Condition


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
    many = dataclasses.replace(options, singles=options.resampled, votes=0)
    generator = torch_generator_for(lm.device, "resampling", seed)
    with lm.base():
        drawn = draw_answers(lm, task, rule, conditions, many, generator)
    return [
        _kept(samples, options.singles, seed=seed, temperature=temperature) for samples in drawn
    ]


def _kept(samples: ConditionSamples, n: int, *, seed: int, temperature: float) -> ConditionSamples:
    phi_N = torch.tensor(samples.log_reward) / temperature - torch.tensor(samples.log_pf)
    phi_N = phi_N.masked_fill(~phi_N.isfinite(), -math.inf)
    if phi_N.isneginf().all():
        phi_N = torch.zeros_like(phi_N)
    rng = rng_for("resampling", seed, samples.condition.key)
    weight_N = phi_N.double().softmax(dim=0)
    chosen = rng.choices(range(len(phi_N)), weights=weight_N.tolist(), k=n)
    columns: dict[str, Any] = {
        name: [values[i] for i in chosen] if (values := getattr(samples, name)) else ()
        for name in (
            "singles",
            "log_reward",
            "log_likelihood",
            "term_log_probs",
            "answer_log_probs",
        )
    }
    # The density of what is kept: that of the posterior, with Z as the draws estimate it.
    log_z = float(phi_N.logsumexp(dim=0)) - math.log(len(phi_N))
    log_pf = [samples.log_reward[i] / temperature - log_z for i in chosen]
    # The support was scored under the base model, which is not what is shown.
    ess = 1 / float(weight_N.square().sum()) / len(phi_N)
    columns |= {"support_log_reward": (), "support_log_pf": ()}
    columns |= {"greedy": None, "greedy_answer_log_probs": ()}
    return dataclasses.replace(samples, votes=(), log_pf=log_pf, draws_ess=ess, **columns)
