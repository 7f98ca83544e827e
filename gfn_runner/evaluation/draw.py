"""Samples of an evaluation: votes, singles, their log R, log q and answers."""

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

# Strings for conditions: (conditions, how many each, temperature, generator) → trajectories, whose
# ``condition_B`` indexes the conditions; neighbours belong to one condition.
Draw = Callable[[Sequence[Condition], int, float, torch.Generator], Trajectories]


@dataclass(frozen=True)
class Drawing:
    """What samples are drawn and scored with; the same for a policy and for what stands beside it.

    Attributes:
        lm: policy, or base model within ``lm.base()``.
        task: for its tool, constraints and answers.
        rule: with the evaluation's maximum length.
        conditions: all of them.
        options: how many samples at which temperature.
        seed: of everything drawn.
        temperature: reward temperature of the posterior.
        posterior: adds samples of the posterior; see :func:`~gfn_runner.evaluation.posterior.with_posterior`.
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
        """Tokens of the conditions' prompts."""
        return [self.lm.encode_prompt(condition.prompt) for condition in conditions]

    def replace(self, **fields: Any) -> Drawing:
        """With other fields."""
        return dataclasses.replace(self, **fields)


def draw_answers(
    d: Drawing,
    generator: torch.Generator,
    *,
    at: float = 1.0,
    draw: Draw | None = None,
    name: str = "evaluation",
) -> list[ConditionSamples]:
    """Sample each condition as the model is switched now, and score the singles.

    Args:
        d: its conditions are shared out among ranks and cut into batches here.
        generator: of the model's device.
        at: temperature of the singles. Their log q stays the one at temperature 1.
        draw: of votes and singles, in place of sampling token by token; it may give other numbers of
            strings than it is asked for.
        name: of what is drawn, for the lines of the log.
    """
    results: list[ConditionSamples] = []
    if world() > 1:
        # Equal conditions on two ranks must not get equal samples.
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
    assert singles is not None  # there is always one
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
            # Where conditions differ in their number of terms, the table is as wide as the longest.
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
    """Where the rows of each condition lie; rows of a condition are neighbours."""
    ends = rows.condition_B.bincount(minlength=n_conditions).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _with_support(d: Drawing, samples: ConditionSamples) -> ConditionSamples:
    """The samples with log R and log q of every string of the task's support, if it has one."""
    listed = support_strings(d, samples.condition)
    if not len(listed):
        return samples
    log_reward_N, log_pf_N, _ = string_scores(d, [samples.condition], listed)
    return dataclasses.replace(
        samples, support_log_reward=log_reward_N.tolist(), support_log_pf=log_pf_N.tolist()
    )


def support_strings(d: Drawing, condition: Condition) -> Trajectories:
    """The strings of the task's support, all of condition 0."""
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
    """``numbers[k]`` strings for each prompt at ``temperatures[k]``; ``None`` where that is 0.

    All kinds are sampled in the same batches, so that each prompt is read once.
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
    """For each prompt one string at each of the temperatures, in their order.

    As many at once as the options allow. A prompt's strings come together, so that it is read once, unless
    they alone are too many.
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
    """Strings drawn at once: ``options.rows``, or fewer where they would need more than its memory.

    The number follows from model, prompts and rule alone, so that every machine draws the same samples.
    """
    row = row_bytes(d.lm.model, d.lm.vocab_size, prompt_tokens + d.rule.max_len)
    return max(1, min(d.options.rows, int(d.options.memory_gib * 2**30 / row)))


def string_scores(
    d: Drawing, conditions: Sequence[Condition], trajectories: Trajectories
) -> tuple[Tensor, Tensor, Tensor]:
    """``log_reward_B``, ``log_pf_B`` (stop included) and ``log_p_BK`` of up to K terms, nats.

    A string that was drawn many times is scored once. log q is of the model as it is switched now.
    """
    rows, inverse_B = trajectories.distinct()
    log_pf_N = policy_log_probs(d.lm, d.prompts(conditions), rows, d.rule)
    log_reward_N, log_p_NK = string_log_reward(d.lm, conditions, rows, d.rule, d.task.constraints())
    return log_reward_N[inverse_B], log_pf_N[inverse_B], log_p_NK[inverse_B]


@torch.no_grad()
def base_log_likelihood(
    d: Drawing, conditions: Sequence[Condition], trajectories: Trajectories
) -> Tensor:
    """log p_LM(z ⊤ | c) under the bare base model, as text and not as a factor. Shape (B,), nats.

    c is the context of a condition's first term, or its prompt where it has none. Suffixes are left out.
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
    """log q(z ⊤) of whole strings under the model as it is switched now. Shape (B,), nats."""
    return score_policy(lm, prompts, trajectories, rule).log_q_B(trajectories)


def _with_answers(
    d: Drawing,
    drawn: Sequence[ConditionSamples],
    singles: Trajectories,
    votes: Trajectories | None,
    greedy: Trajectories | None,
) -> list[ConditionSamples]:
    """The samples with log p(Y_a | X Z) of the task's answer choices."""
    pairs = [d.task.answer_choices(s.condition, s.singles) for s in drawn]
    if not any(pairs):
        return list(drawn)
    kinds: dict[str, Trajectories | None] = {"answer_log_probs": singles}
    if d.task.votes_by_answer:
        kinds |= {"vote_answer_log_probs": votes, "greedy_answer_log_probs": greedy}
    known = {name: strings for name, strings in kinds.items() if strings is not None}
    # In one batch: a prompt is read once, and a string of two kinds is scored once.
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
    """log p(suffix | X Z) by condition, sample and suffix, nats.

    p is the reward's model and X the context of the condition's first term.

    Args:
        conditions: indexed by ``trajectories.condition_B``.
        choices: suffixes of each condition; as many as it likes.
    """
    lm, rule = d.lm, d.rule
    rows, inverse_B = trajectories.distinct()
    contexts = [lm.encode_prompt(condition.terms[0].context) for condition in conditions]
    columns = []
    with lm.reference(), lm.prompts_kept():
        for number in range(max(map(len, choices))):
            # A condition with fewer choices repeats one, which is cut off again below.
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
    """Texts by condition."""
    if trajectories is None:
        return [[]] * n_conditions
    decode = lru_cache(maxsize=None)(lm.decode)
    texts = [decode(tuple(ids)) for ids in trajectories.strings()]
    return [texts[rows] for rows in _row_slices(trajectories, n_conditions)]
