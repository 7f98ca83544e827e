"""Conditions of a run, samples drawn for them, and published results for comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gfn_runner.data.conditions import Condition


@dataclass(frozen=True)
class TaskData:
    """Conditions to train on and to evaluate on.

    Attributes:
        train: training conditions, drawn in proportion to their weight.
        evaluation: evaluation conditions; ``group`` names the evaluation set of each.
        notes: messages for the user about the data (dropped entries and the like).
    """

    train: Sequence[Condition]
    evaluation: Sequence[Condition]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConditionSamples:
    """Samples of a policy for one evaluation condition.

    Attributes:
        votes: texts sampled at the voting temperature.
        singles: texts sampled at temperature 1.
        log_reward: untempered log R of each single, in nats.
        log_pf: log q of each single including its terminator, in nats.
        term_log_probs: log p_LM(z s_k | c_k) of each single for the condition's terms, before weighting,
            in nats.
        log_likelihood: log p_LM(z ⊤ | c) of each single under the base model without adapter, in nats; c is
            the context of the condition's first term, or the prompt if there are no terms.
        choices: the answers Y_a of the task's ``answer_choices``.
        answer_log_probs: log p(Y_a | X Z) of the choices for each single Z under the reward model, in nats;
            empty if the task has no choices.
        vote_answer_log_probs: the same for each vote.
        support_log_reward, support_log_pf: log R and log q of the strings of the task's ``support``.
        posterior: texts of samples from the posterior itself, if any were drawn.
        posterior_log_reward, posterior_log_pf: untempered log R and log q of these samples, in nats.
        posterior_ess: effective sample size, as a fraction, of the draws they were resampled from.
        posterior_log_z: estimate of log Z from those draws, in nats.
        draws_ess: effective sample size, as a fraction, of the draws that the singles were resampled from;
            ``None`` without resampling.
        greedy: text sampled at temperature 0, if the task draws it.
        greedy_answer_log_probs: answer log-probabilities of the greedy text, as for each vote.
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
    """How the base model generates demonstrations for the replay buffer.

    Attributes:
        prompt: prompt of the base model.
        n: number of samples to draw, at temperature 1.
        keep: regular expression for the part to keep, matched at the start of the sample; samples that do
            not match, or of which nothing remains, are dropped.
    """

    prompt: str
    n: int
    keep: str = ".*"


@dataclass(frozen=True)
class ReferenceRow:
    """A published result for comparison; always of a different model.

    Attributes:
        label: method and model.
        values: metric values by name, in the metric's own unit.
    """

    label: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class ReferenceSample:
    """A published sample with its log R; of a different model.

    Attributes:
        condition: the condition, as written in the publication.
        label: who or what wrote the sample.
        log_reward: log R under the publication's model, in nats.
    """

    condition: str
    label: str
    text: str
    log_reward: float


def limited(conditions: Sequence[Condition], per_group: int | None) -> list[Condition]:
    """Return the first ``per_group`` conditions of each group, or all conditions if it is ``None``."""
    if per_group is None:
        return list(conditions)
    counts: Counter[str] = Counter()
    kept = []
    for condition in conditions:
        counts[condition.group] += 1
        if counts[condition.group] <= per_group:
            kept.append(condition)
    return kept
