"""Drawing what an evaluation needs: votes, singles and their log R, log q; knows no metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.posterior.reward import log_reward
from gfn_runner.tasks.base import ConditionSamples, Task
from gfn_runner.types import Condition, Trajectories


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How much is drawn, and when.

    Attributes:
        every: optimizer steps between evaluations during training; 0 for none.
        during: conditions per evaluation set during training.
        final: conditions per set at the end; ``None`` for all.
        votes: samples per condition for the vote.
        vote_temperature: of those samples; 0 is greedy.
        singles: samples per condition at temperature 1.
        batch: conditions evaluated at once.
        baseline_shots: numbers of worked examples with which the base model is evaluated; empty for
            no baseline.
        baseline_limit: conditions per set for that; ``None`` for all.
    """

    every: Annotated[int, Field(ge=0)] = 50
    during: Annotated[int, Field(ge=1)] = 40
    final: Annotated[int, Field(ge=1)] | None = None
    votes: Annotated[int, Field(ge=1)] = 10
    vote_temperature: Annotated[float, Field(ge=0)] = 0.1
    singles: Annotated[int, Field(ge=1)] = 2
    batch: Annotated[int, Field(ge=1)] = 25
    baseline_shots: tuple[Annotated[int, Field(ge=0)], ...] = (0, 3)
    baseline_limit: Annotated[int, Field(ge=1)] | None = 100


def draw_answers(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    generator: torch.Generator,
) -> list[ConditionSamples]:
    """Sample each condition as the model is switched now, and score the singles.

    Args:
        lm: policy, or base model within ``lm.base()``.
        task: for its tool and constraints.
        rule: with the evaluation's maximum length.
        conditions: all of them; cut into batches here.
        options: how many samples at which temperature.
        generator: of the model's device.
    """
    results: list[ConditionSamples] = []
    for start in range(0, len(conditions), options.batch):
        part = conditions[start : start + options.batch]
        results += _draw_batch(lm, task, rule, part, options, generator)
    return results


@torch.no_grad()
def _draw_batch(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    generator: torch.Generator,
) -> list[ConditionSamples]:
    prompts = [lm.encode_prompt(condition.prompt) for condition in conditions]
    votes = sample(
        lm,
        prompts,
        options.votes,
        rule,
        generator,
        temperature=options.vote_temperature,
        tool=task.tool(),
    )
    singles = sample(lm, prompts, options.singles, rule, generator, tool=task.tool())
    scores = score_policy(lm, prompts, singles, rule)
    ends_B1 = singles.length_B[:, None]
    log_pf_B = scores.log_pf_BT.sum(dim=1) + scores.log_pf_stop_BS.gather(1, ends_B1)[:, 0]
    reward_BS = log_reward(lm, conditions, singles, rule, task.constraints())
    log_reward_B = reward_BS.gather(1, ends_B1)[:, 0]
    vote_texts, single_texts = _texts(lm, votes), _texts(lm, singles)
    answers: list[dict[str, Any]] = [{} for _ in conditions]
    if any(map(task.answer_choices, conditions)):
        greedy = sample(lm, prompts, 1, rule, generator, temperature=0.0, tool=task.tool())
        answers = _answers(lm, task, rule, conditions, votes, singles, greedy)
    return [
        ConditionSamples(
            condition,
            vote_texts[place * options.votes : (place + 1) * options.votes],
            single_texts[place * options.singles : (place + 1) * options.singles],
            log_reward_B[place * options.singles : (place + 1) * options.singles].tolist(),
            log_pf_B[place * options.singles : (place + 1) * options.singles].tolist(),
            **answers[place],
        )
        for place, condition in enumerate(conditions)
    ]


def _answers(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    votes: Trajectories,
    singles: Trajectories,
    greedy: Trajectories,
) -> list[dict[str, Any]]:
    """Fields of ConditionSamples on the answers to which samples lead, for each condition."""
    columns = [
        answer_log_probs(lm, task, rule, conditions, rows) for rows in (votes, singles, greedy)
    ]
    texts = _texts(lm, greedy)
    return [
        {
            "vote_answer_log_probs": columns[0][place],
            "answer_log_probs": columns[1][place],
            "greedy": texts[place],
            "greedy_answer_log_probs": columns[2][place][0],
        }
        for place in range(len(conditions))
    ]


@torch.no_grad()
def answer_log_probs(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
) -> list[list[list[float]]]:
    """log p(suffix | X Z) of each answer choice by condition, sample and choice, in nats.

    X is the context of the condition's first term; the model is the reward's.
    """
    contexts = [lm.encode_prompt(condition.terms[0].context) for condition in conditions]
    choices = [[lm.encode(text) for text in task.answer_choices(c)] for c in conditions]
    with lm.reference():
        columns = [
            score_suffixes(lm, contexts, suffixes, trajectories, rule)
            for suffixes in zip(*choices, strict=True)
        ]
    rows = torch.stack(columns, dim=1).tolist()
    places = trajectories.condition_B.tolist()
    return [
        [row for row, at in zip(rows, places, strict=True) if at == place]
        for place in range(len(conditions))
    ]


def _texts(lm: LanguageModel, trajectories: Trajectories) -> list[str]:
    return [lm.decode(trajectories.ids(row)) for row in range(len(trajectories))]


def limited(conditions: Sequence[Condition], per_group: int | None) -> list[Condition]:
    """The first ``per_group`` conditions of each group; all of them for ``None``."""
    if per_group is None:
        return list(conditions)
    counts: dict[str, int] = {}
    kept = []
    for condition in conditions:
        counts[condition.group] = counts.get(condition.group, 0) + 1
        if counts[condition.group] <= per_group:
            kept.append(condition)
    return kept
