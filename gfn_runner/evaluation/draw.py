"""Samples of an evaluation: votes and singles, with their log R, log q and answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed.ranks import all_gather, rank, share_of_rank, world
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.cache import row_bytes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_strings, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.seeds import torch_generator_for
from gfn_runner.runtime.status import ProgressLogger

# Draws strings: (conditions, number per condition, temperature, generator) → trajectories, whose
# ``condition_B`` indexes the conditions; rows of a condition are adjacent.
Draw = Callable[[Sequence[Condition], int, float, torch.Generator], Trajectories]


@dataclass(frozen=True)
class Drawing:
    """Everything needed to draw and score samples, for a policy as well as for baselines.

    Attributes:
        lm: the policy, or the base model within ``lm.base()``.
        task: provides the tool, constraints and answers.
        rule: string rule with the maximum length of the evaluation.
        conditions: all conditions to sample for.
        options: numbers of samples and their temperatures.
        seed: seed of all random streams.
        temperature: reward temperature of the posterior.
        posterior: adds posterior samples; see :func:`~gfn_runner.evaluation.posterior.with_posterior`.
    """

    lm: LanguageModel
    task: Task
    rule: StringRule
    conditions: Sequence[Condition]
    options: EvaluationSettings
    seed: int = 0
    temperature: float = 1.0
    posterior: Callable[[ConditionSamples], ConditionSamples] | None = None

    def prompts(self, conditions: Sequence[Condition]) -> list[tuple[int, ...]]:
        """Return the token ids of the conditions' prompts."""
        return [self.lm.encode_prompt(condition.prompt) for condition in conditions]

    def replace(self, **fields: Any) -> Drawing:
        """Return a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)


def draw_answers(
    d: Drawing,
    generator: torch.Generator,
    *,
    at: float = 1.0,
    draw: Draw | None = None,
    name: str = "evaluation",
) -> list[ConditionSamples]:
    """Sample each condition from the model with its active adapter, if any, and score the singles.

    Args:
        d: its conditions are split across ranks and into batches here.
        generator: random generator on the model's device.
        at: temperature of the singles. Their log q is still computed at temperature 1.
        draw: draws votes and singles instead of token-by-token sampling; it may return a different number
            of strings than requested.
        name: name of the samples, for log lines.
    """
    results: list[ConditionSamples] = []
    if world() > 1:
        # The same condition on two ranks must not get the same samples.
        drawn = torch.randint(2**62, (), generator=generator, device=generator.device).item()
        generator = torch_generator_for(generator.device, "share", drawn, rank())
    own = share_of_rank(d.conditions)
    with d.lm.in_step(), ProgressLogger(name, len(own)) as count:
        for start in range(0, len(own), d.options.batch):
            part = own[start : start + d.options.batch]
            count.part = part[0].group
            with d.lm.prompts_kept():
                drawn_part = _draw_batch(d, part, generator, at, draw)
            results += drawn_part if d.posterior is None else map(d.posterior, drawn_part)
            count.advance(len(part))
    return [samples for share in all_gather(results) for samples in share]


@torch.no_grad()
def _draw_batch(
    d: Drawing,
    conditions: Sequence[Condition],
    generator: torch.Generator,
    at: float,
    draw: Draw | None,
) -> list[ConditionSamples]:
    options, prompts, n_greedy = d.options, d.prompts(conditions), int(d.task.draws_greedy)
    votes: Trajectories | None
    singles: Trajectories | None
    greedy: Trajectories | None = None
    if draw is None:
        numbers = (options.votes, options.singles, n_greedy)
        temperatures = (options.vote_temperature, at, 0.0)
        votes, singles, greedy = draw_kinds(d, prompts, numbers, temperatures, generator)
    else:
        at_vote = options.vote_temperature
        votes = draw(conditions, options.votes, at_vote, generator) if options.votes else None
        singles = draw(conditions, options.singles, at, generator)
        if n_greedy:
            greedy = draw_many(d, prompts, [0.0], generator)
    assert singles is not None  # options.singles is at least 1
    texts = [_texts(d.lm, rows, len(conditions)) for rows in (votes, singles, greedy)]
    log_reward_B, log_pf_B, log_p_BK = string_scores(d, conditions, singles)
    likelihood_B = base_log_likelihood(d, conditions, singles)
    rows_of = _row_slices(singles, len(conditions))
    drawn = [
        ConditionSamples(
            condition,
            votes=vote_texts,
            singles=single_texts,
            log_reward=log_reward_B[rows].tolist(),
            log_pf=log_pf_B[rows].tolist(),
            # The table has as many columns as the condition with the most terms.
            term_log_probs=[row[: len(condition.terms)] for row in log_p_BK[rows].tolist()],
            log_likelihood=likelihood_B[rows].tolist(),
            greedy=greedy_texts[0] if greedy is not None else None,
        )
        for condition, rows, vote_texts, single_texts, greedy_texts in zip(
            conditions, rows_of, *texts, strict=True
        )
    ]
    return [
        _with_support(d, samples) for samples in _with_answers(d, drawn, singles, votes, greedy)
    ]


def _row_slices(rows: Trajectories, n_conditions: int) -> list[slice]:
    """Return the slice of rows of each condition; rows of a condition are adjacent."""
    ends = rows.condition_B.bincount(minlength=n_conditions).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _with_support(d: Drawing, samples: ConditionSamples) -> ConditionSamples:
    """Add log R and log q of every string of the task's support, if it has one."""
    listed = support_strings(d, samples.condition)
    if not len(listed):
        return samples
    log_reward_N, log_pf_N, _ = string_scores(d, [samples.condition], listed)
    return dataclasses.replace(
        samples, support_log_reward=log_reward_N.tolist(), support_log_pf=log_pf_N.tolist()
    )


def support_strings(d: Drawing, condition: Condition) -> Trajectories:
    """Return the strings of the task's support, all with condition index 0."""
    strings = [d.lm.encode(text) for text in d.task.support(condition)]
    actions = [(True,) * len(ids) for ids in strings]
    return Trajectories.from_rows(strings, actions, [0] * len(strings), d.lm.device)


def draw_kinds(
    d: Drawing,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    temperatures: Sequence[float],
    generator: torch.Generator,
) -> list[Trajectories | None]:
    """Draw ``numbers[k]`` strings per prompt at ``temperatures[k]``; ``None`` where the number is 0.

    All kinds are sampled in the same batches, so each prompt is prefilled once.
    """
    kinds = [k for k, n in enumerate(numbers) for _ in range(n)]
    at = [temperatures[k] for k in kinds]
    rows = draw_many(d, prompts, at, generator)
    kind_B = torch.tensor(kinds, device=d.lm.device).repeat(len(prompts))
    return [rows.rows(kind_B == k) if n else None for k, n in enumerate(numbers)]


def draw_many(
    d: Drawing,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    generator: torch.Generator,
) -> Trajectories:
    """Draw one string per prompt at each of the temperatures, in their order.

    As many strings are sampled at once as the options allow. The strings of a prompt are sampled together,
    so the prompt is prefilled once, unless they exceed this limit by themselves.
    """
    at_once = rows_at_once(d, max(map(len, prompts)))
    n_strings = min(at_once, len(temperatures))
    n_prompts = at_once // n_strings
    tool, parts = d.task.tool(), []
    for first in range(0, len(prompts), n_prompts):
        own = prompts[first : first + n_prompts]
        for start in range(0, len(temperatures), n_strings):
            at = temperatures[start : start + n_strings]
            at_B = torch.tensor(at, device=d.lm.device).repeat(len(own))
            part = sample(d.lm, own, len(at), d.rule, generator, temperature=at_B, tool=tool)
            parts.append(dataclasses.replace(part, condition_B=part.condition_B + first))
    return parts[0] if len(parts) == 1 else Trajectories.concatenated(parts)


def rows_at_once(d: Drawing, prompt_tokens: int) -> int:
    """Return how many strings to sample at once: ``options.rows``, or fewer if memory is insufficient.

    The number depends only on model, prompts and rule, so every machine draws the same samples.
    """
    row = row_bytes(d.lm.model, d.lm.vocab_size, prompt_tokens + d.rule.max_len)
    return max(1, min(d.options.rows, int(d.options.memory_gib * 2**30 / row)))


def string_scores(
    d: Drawing, conditions: Sequence[Condition], trajectories: Trajectories
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``log_reward_B``, ``log_pf_B`` (including ⊤) and ``log_p_BK`` of up to K terms, in nats.

    Duplicate strings are scored once. log q is that of the model with its active adapter.
    """
    rows, inverse_B = trajectories.distinct()
    log_pf_N = policy_log_probs(d.lm, d.prompts(conditions), rows, d.rule)
    log_reward_N, log_p_NK = string_log_reward(d.lm, conditions, rows, d.rule, d.task.constraints())
    return log_reward_N[inverse_B], log_pf_N[inverse_B], log_p_NK[inverse_B]


@torch.no_grad()
def base_log_likelihood(
    d: Drawing, conditions: Sequence[Condition], trajectories: Trajectories
) -> Tensor:
    """Return log p_LM(z ⊤ | c) under the base model without adapters. Shape (B,), nats.

    c is the context of a condition's first term, or its prompt without terms. Suffixes are ignored.
    """
    rows, inverse_B = trajectories.distinct()
    texts = [c.terms[0].context if c.terms else c.prompt for c in conditions]
    stops = [(d.rule.terminator,)] * len(conditions)
    given = GivenStrings([d.lm.encode_prompt(text) for text in texts], stops, rows, d.rule)
    with d.lm.base():
        return score_strings(d.lm, given)[inverse_B]


def policy_log_probs(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """Return log q(z ⊤) of complete strings under the model with its active adapter. Shape (B,), nats."""
    return score_policy(lm, prompts, trajectories, rule).log_q_B(trajectories)


def _with_answers(
    d: Drawing,
    drawn: Sequence[ConditionSamples],
    singles: Trajectories,
    votes: Trajectories | None,
    greedy: Trajectories | None,
) -> list[ConditionSamples]:
    """Add log p(Y_a | X Z) of the task's answer choices."""
    pairs = [d.task.answer_choices(s.condition, s.singles) for s in drawn]
    if not any(pairs):
        return list(drawn)
    kinds: dict[str, Trajectories | None] = {"answer_log_probs": singles}
    if d.task.votes_by_answer:
        kinds |= {"vote_answer_log_probs": votes, "greedy_answer_log_probs": greedy}
    known = {name: strings for name, strings in kinds.items() if strings is not None}
    # One batch: each prompt is prefilled once, and a string of two kinds is scored once.
    rows = answer_log_probs(
        d,
        [samples.condition for samples in drawn],
        [[suffix for suffix, _ in own] for own in pairs],
        Trajectories.concatenated(list(known.values())),
    )
    answered = []
    counts = [s.condition_B.bincount(minlength=len(drawn)).tolist() for s in known.values()]
    for place, samples in enumerate(drawn):
        left = iter(rows[place])
        columns: dict[str, Any] = {
            name: list(itertools.islice(left, count[place]))
            for name, count in zip(known, counts, strict=True)
        }
        if "greedy_answer_log_probs" in columns:
            (columns["greedy_answer_log_probs"],) = columns["greedy_answer_log_probs"]
        columns["choices"] = tuple(answer for _, answer in pairs[place])
        answered.append(dataclasses.replace(samples, **columns))
    return answered


@torch.no_grad()
def answer_log_probs(
    d: Drawing,
    conditions: Sequence[Condition],
    choices: Sequence[Sequence[str]],
    trajectories: Trajectories,
) -> list[list[list[float]]]:
    """Return log p(suffix | X Z) by condition, sample and suffix, in nats.

    p is the reward model and X the context of the condition's first term.

    Args:
        conditions: indexed by ``trajectories.condition_B``.
        choices: suffixes per condition; their number may differ between conditions.
    """
    lm, rule = d.lm, d.rule
    rows, inverse_B = trajectories.distinct()
    contexts = [lm.encode_prompt(condition.terms[0].context) for condition in conditions]
    columns = []
    with lm.reference(), lm.prompts_kept():
        for number in range(max(map(len, choices))):
            # A condition with fewer choices repeats its last one; the repeats are cut off below.
            texts = [own[min(number, len(own) - 1)] if own else "" for own in choices]
            suffixes = [lm.encode(text) or (rule.terminator,) for text in texts]
            columns.append(score_suffixes(lm, GivenStrings(contexts, suffixes, rows, rule)))
    log_p_BA = torch.stack(columns, dim=1)[inverse_B].tolist()
    results: list[list[list[float]]] = [[] for _ in conditions]
    for place, row in zip(trajectories.condition_B.tolist(), log_p_BA, strict=True):
        results[place].append(row[: len(choices[place])])
    return results


def _texts(
    lm: LanguageModel, trajectories: Trajectories | None, n_conditions: int
) -> list[list[str]]:
    """Return the texts by condition."""
    if trajectories is None:
        return [[]] * n_conditions
    decode = lru_cache(maxsize=None)(lm.decode)
    texts = [decode(tuple(ids)) for ids in trajectories.strings()]
    return [texts[rows] for rows in _row_slices(trajectories, n_conditions)]
