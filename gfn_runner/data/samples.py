"""Conditions of a run, samples of a condition, published rows to compare with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gfn_runner.data.conditions import Condition


@dataclass(frozen=True)
class TaskData:
    """Conditions to train on and to evaluate on.

    Attributes:
        train: drawn by their weight.
        evaluation: each in the set that its ``group`` names.
        notes: what a person should know of the data (dropped entries and the like).
    """

    train: Sequence[Condition]
    evaluation: Sequence[Condition]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConditionSamples:
    """Samples of a policy for one evaluation condition.

    Attributes:
        votes: texts at the voting temperature.
        singles: texts at temperature 1.
        log_reward: untempered log R of each single, nats.
        log_pf: log q of each single, its stop included, nats.
        term_log_probs: of each single, log p_LM(z s_k | c_k) of the condition's terms before their
            weights, nats.
        log_likelihood: log p_LM(z ⊤ | c) of each single under the bare base model, nats; c is the context
            of the condition's first term, or the prompt where there is none.
        choices: the answers Y_a of the task's ``answer_choices``.
        answer_log_probs: of each single Z, log p(Y_a | X Z) of the choices under the reward's model,
            nats; empty where the task has none.
        vote_answer_log_probs: the same of each vote.
        support_log_reward, support_log_pf: log R and log q of the strings of the task's ``support``.
        posterior: texts of samples of the posterior itself, where they were drawn.
        posterior_log_reward, posterior_log_pf: untempered log R and log q of each of them, nats.
        posterior_ess: effective sample size of the draws that they were resampled from, as a share.
        posterior_log_z: the estimate of log Z by those draws, nats.
        draws_ess: effective sample size of the draws that the singles were resampled from, as a share
            of the draws; ``None`` where nothing was resampled.
        greedy: the text at temperature 0, where the task draws it.
        greedy_answer_log_probs: as of each vote.
    """

    condition: Condition
    votes: Sequence[str]
    singles: Sequence[str]
    log_reward: Sequence[float]
    log_pf: Sequence[float]
    term_log_probs: Sequence[Sequence[float]] = ()
    log_likelihood: Sequence[float] = ()
    choices: Sequence[object] = ()
    answer_log_probs: Sequence[Sequence[float]] = ()
    vote_answer_log_probs: Sequence[Sequence[float]] = ()
    support_log_reward: Sequence[float] = ()
    support_log_pf: Sequence[float] = ()
    posterior: Sequence[str] = ()
    posterior_log_reward: Sequence[float] = ()
    posterior_log_pf: Sequence[float] = ()
    posterior_ess: float | None = None
    posterior_log_z: float | None = None
    draws_ess: float | None = None
    greedy: str | None = None
    greedy_answer_log_probs: Sequence[float] = ()


@dataclass(frozen=True)
class DemonstrationPrompt:
    """How the base model is made to write demonstrations of its own for the replay buffer.

    Attributes:
        prompt: what it reads.
        n: samples to draw, at temperature 1.
        keep: regular expression of the part that is kept, from the sample's beginning; a sample that
            does not match, or of which nothing is left, is dropped.
    """

    prompt: str
    n: int
    keep: str = ".*"


@dataclass(frozen=True)
class ReferenceRow:
    """A published result to stand beside ours; always of a different model.

    Attributes:
        label: method and model.
        values: metric name to value in the metric's own unit.
    """

    label: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class ReferenceSample:
    """A published sample with its log R; of a different model.

    Attributes:
        condition: as the publication writes it.
        label: who wrote it.
        log_reward: log R under the publication's model, nats.
    """

    condition: str
    label: str
    text: str
    log_reward: float


def limited(conditions: Sequence[Condition], per_group: int | None) -> list[Condition]:
    """The first ``per_group`` conditions of each group; all of them for ``None``."""
    if per_group is None:
        return list(conditions)
    counts: Counter[str] = Counter()
    kept = []
    for condition in conditions:
        counts[condition.group] += 1
        if counts[condition.group] <= per_group:
            kept.append(condition)
    return kept
