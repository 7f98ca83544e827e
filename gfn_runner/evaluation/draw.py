"""Drawing what an evaluation needs: votes, singles, their log R, log q and answers; knows no metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed.ranks import gathered, own_share, rank, world
from gfn_runner.lm.memory import row_bytes
from gfn_runner.lm.pieces import row_slices
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_strings, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.seeds import torch_generator_for
from gfn_runner.runtime.status import Count
from gfn_runner.tasks.base import Task

# Strings for conditions: (conditions, how many each, temperature, generator) → trajectories, whose
# ``condition_B`` indexes the conditions; neighbours belong to one condition.
Draw = Callable[[Sequence[Condition], int, float, torch.Generator], Trajectories]


def draw_answers(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    draw: Draw | None = None,
    name: str = "evaluation",
) -> list[ConditionSamples]:
    """Sample each condition as the model is switched now, and score the singles.

    Args:
        lm: policy, or base model within ``lm.base()``.
        task: for its tool and constraints.
        rule: with the evaluation's maximum length.
        conditions: all of them; shared out among ranks and cut into batches here.
        options: how many samples at which temperature.
        generator: of the model's device.
        temperature: of the singles. Their log q stays the one at temperature 1.
        draw: of votes and singles, in place of sampling token by token; it may give other numbers of
            strings than it is asked for.
        name: of what is drawn, for the lines of the log.
    """
    results: list[ConditionSamples] = []
    if world() > 1:
        # Equal conditions on two ranks must not get equal samples.
        drawn = torch.randint(2**62, (), generator=generator, device=generator.device).item()
        generator = torch_generator_for(generator.device, "share", drawn, rank())
    own = own_share(conditions)
    with lm.in_step(), Count(name, len(own)) as count:
        for start in range(0, len(own), options.batch):
            part = own[start : start + options.batch]
            count.part = part[0].group
            results += _draw_batch(lm, task, rule, part, options, generator, temperature, draw)
            count.advance(len(part))
    return [samples for share in gathered(results) for samples in share]


@torch.no_grad()
def _draw_batch(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    generator: torch.Generator,
    temperature: float,
    draw: Draw | None,
) -> list[ConditionSamples]:
    prompts = [lm.encode_prompt(condition.prompt) for condition in conditions]
    n_greedy = int(task.draws_greedy)
    if draw is None:
        numbers = (options.votes, options.singles, n_greedy)
        at = (options.vote_temperature, temperature, 0.0)
        votes, singles, greedy = draw_kinds(
            lm, task, rule, prompts, numbers, at, options, generator
        )
    else:
        votes = singles = greedy = None
        if options.votes:
            votes = draw(conditions, options.votes, options.vote_temperature, generator)
        singles = draw(conditions, options.singles, temperature, generator)
        if n_greedy:
            greedy = draw_many(lm, task, rule, prompts, [0.0], options, generator)
    assert singles is not None  # there is always one
    vote_texts = _texts(lm, votes, len(conditions))
    single_texts = _texts(lm, singles, len(conditions))
    greedy_texts = _texts(lm, greedy, len(conditions))
    columns = string_scores(lm, task, rule, conditions, singles)
    likelihood_B = base_log_likelihood(lm, rule, conditions, singles)
    counts, end, drawn = singles.condition_B.bincount(minlength=len(conditions)).tolist(), 0, []
    for place, condition in enumerate(conditions):
        rows = slice(end, end := end + counts[place])
        log_reward, log_pf, terms = (column[rows].tolist() for column in columns)
        # Where conditions differ in their number of terms, the table is as wide as the longest.
        terms = [row[: len(condition.terms)] for row in terms]
        drawn.append(
            ConditionSamples(
                condition,
                vote_texts[place],
                single_texts[place],
                log_reward,
                log_pf,
                terms,
                likelihood_B[rows].tolist(),
                greedy=greedy_texts[place][0] if greedy is not None else None,
            )
        )
    drawn = with_answers(lm, task, rule, drawn, singles, votes, greedy)
    return [with_support(lm, task, rule, samples) for samples in drawn]


def with_support(
    lm: LanguageModel, task: Task, rule: StringRule, samples: ConditionSamples
) -> ConditionSamples:
    """The samples with log R and log q of every string of the task's support, if it has one."""
    strings = [lm.encode(text) for text in task.support(samples.condition)]
    if not strings:
        return samples
    trajectories = Trajectories.from_rows(
        strings, [(True,) * len(ids) for ids in strings], [0] * len(strings), lm.device
    )
    log_reward_N, log_pf_N, _ = string_scores(lm, task, rule, [samples.condition], trajectories)
    return dataclasses.replace(
        samples,
        support_log_reward=log_reward_N.tolist(),
        support_log_pf=log_pf_N.tolist(),
    )


def draw_kinds(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    temperatures: Sequence[float],
    options: EvaluationSettings,
    generator: torch.Generator,
) -> list[Trajectories | None]:
    """``numbers[k]`` strings for each prompt at ``temperatures[k]``; ``None`` for none of them.

    They are drawn together, so that each prompt is read once.
    """
    kinds = [k for k, n in enumerate(numbers) for _ in range(n)]
    at = [temperatures[k] for k in kinds]
    rows = draw_many(lm, task, rule, prompts, at, options, generator)
    kind_B = torch.tensor(kinds, device=lm.device).repeat(len(prompts))
    return [rows.rows(kind_B == k) if n else None for k, n in enumerate(numbers)]


def draw_many(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    options: EvaluationSettings,
    generator: torch.Generator,
) -> Trajectories:
    """For each prompt one string at each of the temperatures, in their order.

    As many at once as ``options`` allow; at least one of each prompt.
    """
    at_once = max(1, rows_at_once(lm, rule, max(map(len, prompts)), options) // len(prompts))
    parts = []
    for start in range(0, len(temperatures), at_once):
        at = temperatures[start : start + at_once]
        at_B = torch.tensor(at, device=lm.device).repeat(len(prompts))
        parts.append(
            sample(lm, prompts, len(at), rule, generator, temperature=at_B, tool=task.tool())
        )
    return parts[0] if len(parts) == 1 else Trajectories.concatenated(parts)


def rows_at_once(
    lm: LanguageModel, rule: StringRule, prompt_tokens: int, options: EvaluationSettings
) -> int:
    """Strings drawn at once: ``options.rows``, or fewer where they would need more than its memory.

    The number follows from model, prompts and rule alone, so that every machine draws the same samples.
    """
    row = row_bytes(lm.model, lm.vocab_size, prompt_tokens + rule.max_len)
    return max(1, min(options.rows, int(options.memory_gib * 2**30 / row)))


def string_scores(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
) -> tuple[Tensor, Tensor, Tensor]:
    """``log_reward_B``, ``log_pf_B`` (stop included) and ``log_p_BK`` of up to K terms, nats.

    A string that was drawn many times is scored once. log q is of the model as it is switched now.
    """
    distinct, inverse_B = trajectories.distinct()
    prompts = [lm.encode_prompt(condition.prompt) for condition in conditions]
    log_pf_N = policy_log_probs(lm, prompts, distinct, rule)
    log_reward_N, log_p_NK = string_log_reward(lm, conditions, distinct, rule, task.constraints())
    return log_reward_N[inverse_B], log_pf_N[inverse_B], log_p_NK[inverse_B]


@torch.no_grad()
def base_log_likelihood(
    lm: LanguageModel,
    rule: StringRule,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
) -> Tensor:
    """log p_LM(z ⊤ | c) under the bare base model, as text and not as a factor. Shape (B,), nats.

    c is the context of a condition's first term, or its prompt where it has none. A suffix has no part:
    what a middle says of an ending is not how likely the middle is.
    """
    rows, inverse_B = trajectories.distinct()
    contexts = [lm.encode_prompt(c.terms[0].context if c.terms else c.prompt) for c in conditions]
    stops = [(rule.terminator,)] * len(conditions)
    with lm.base():
        return score_strings(lm, contexts, stops, rows, rule)[inverse_B]


def policy_log_probs(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """log q(z ⊤) of whole strings under the model as it is switched now. Shape (B,), nats."""
    around = max(map(len, prompts)) + trajectories.token_BT.shape[1]
    pieces = []
    for index in row_slices(len(trajectories), around, lm.max_tokens_per_forward):
        rows = trajectories.rows(index)
        scores = score_policy(lm, prompts, rows, rule)
        ends_B1 = rows.length_B[:, None]
        stop_B = scores.log_pf_stop_BS.gather(1, ends_B1)[:, 0]
        pieces.append(scores.log_pf_BT.sum(dim=1) + stop_B)
    return torch.cat(pieces)


def with_answers(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    drawn: Sequence[ConditionSamples],
    singles: Trajectories,
    votes: Trajectories | None,
    greedy: Trajectories | None,
) -> list[ConditionSamples]:
    """The samples with log p(Y_a | X Z) of the task's answer choices."""
    pairs = [task.answer_choices(s.condition, s.singles) for s in drawn]
    choices = [[suffix for suffix, _ in own] for own in pairs]
    if not any(choices):
        return list(drawn)
    conditions = [samples.condition for samples in drawn]
    groups: list[tuple[str, Trajectories | None]] = [("answer_log_probs", singles)]
    if task.votes_by_answer:
        groups += [("vote_answer_log_probs", votes), ("greedy_answer_log_probs", greedy)]
    known = [(name, strings) for name, strings in groups if strings is not None]
    # Together: a prompt is read once, and a string that was drawn in two ways is scored once.
    together = Trajectories.concatenated([strings for _, strings in known])
    rows = answer_log_probs(lm, rule, conditions, choices, together)
    columns: dict[str, Sequence[Any]] = {
        "choices": [tuple(answer for _, answer in own) for own in pairs]
    }
    ends = [0] * len(drawn)
    for name, strings in known:
        counts = strings.condition_B.bincount(minlength=len(drawn)).tolist()
        columns[name] = [own[end : end + n] for own, end, n in zip(rows, ends, counts, strict=True)]
        ends = [end + n for end, n in zip(ends, counts, strict=True)]
    if "greedy_answer_log_probs" in columns:
        columns["greedy_answer_log_probs"] = [own[0] for own in columns["greedy_answer_log_probs"]]
    return [
        dataclasses.replace(samples, **{name: own[place] for name, own in columns.items()})
        for place, samples in enumerate(drawn)
    ]


@torch.no_grad()
def answer_log_probs(
    lm: LanguageModel,
    rule: StringRule,
    conditions: Sequence[Condition],
    choices: Sequence[Sequence[str]],
    trajectories: Trajectories,
) -> list[list[list[float]]]:
    """log p(suffix | X Z) by condition, sample and suffix, nats.

    p is the reward's model and X the context of the condition's first term.

    Args:
        lm: the model.
        rule: the strings' rule.
        conditions: indexed by ``trajectories.condition_B``.
        choices: suffixes of each condition; as many as it likes.
        trajectories: the samples Z.
    """
    rows, inverse_B = trajectories.distinct()
    contexts = [lm.encode_prompt(condition.terms[0].context) for condition in conditions]
    columns = []
    with lm.reference():
        for number in range(max(map(len, choices))):
            # A condition with fewer choices repeats one, which is cut off again below.
            texts = [own[min(number, len(own) - 1)] if own else "" for own in choices]
            suffixes = [lm.encode(text) or (rule.terminator,) for text in texts]
            columns.append(score_suffixes(lm, contexts, suffixes, rows, rule))
    log_p_BA = torch.stack(columns, dim=1)[inverse_B].tolist()
    results: list[list[list[float]]] = [[] for _ in conditions]
    for place, row in zip(trajectories.condition_B.tolist(), log_p_BA, strict=True):
        results[place].append(row[: len(choices[place])])
    return results


def _texts(
    lm: LanguageModel, trajectories: Trajectories | None, n_conditions: int
) -> list[list[str]]:
    """Texts by condition."""
    texts: list[list[str]] = [[] for _ in range(n_conditions)]
    if trajectories is not None:
        known: dict[tuple[int, ...], str] = {}
        places = trajectories.condition_B.tolist()
        for place, string in zip(places, trajectories.strings(), strict=True):
            ids = tuple(string)
            if ids not in known:
                known[ids] = lm.decode(ids)
            texts[place].append(known[ids])
    return texts


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
