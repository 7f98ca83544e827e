"""Metrics shared by several tasks, computed per evaluation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.metrics.accuracy import with_interval
from gfn_runner.rewards.factors import ClassifierFactor, constraint_of

Measure = Callable[[Sequence[ConditionSamples]], Mapping[str, float]]


def per_group(samples: Sequence[ConditionSamples], *measures: Measure) -> dict[str, float]:
    """Compute the measures for each evaluation set, with names ``<measure>/<group>``."""
    result: dict[str, float] = {}
    for group in sorted({sample.condition.group for sample in samples}):
        members = [sample for sample in samples if sample.condition.group == group]
        for measure in measures:
            result |= {f"{name}/{group}": value for name, value in measure(members).items()}
    return result


def satisfied(samples: Sequence[ConditionSamples]) -> dict[str, float]:
    """Compute ``satisfied_share``: singles that meet their condition's words, pattern and length, in 0..1.

    The 95 % interval (``_low``, ``_high``) counts conditions, not samples, as trials, since samples of one
    condition are not independent. Conditions without such constraints are ignored.
    """
    met = [
        [constraint.satisfied(text) for text in sample.singles]
        for sample in samples
        if sample.singles
        and (constraint := constraint_of(sample.condition))
        and constraint.is_checkable
    ]
    if not met:
        return {}
    share = sum(map(sum, met)) / sum(map(len, met))
    return with_interval("satisfied_share", share, len(met))


def grammatical(
    samples: Sequence[ConditionSamples], is_sentence: Callable[[str], bool]
) -> dict[str, float]:
    """Compute ``grammatical_share``: samples for generated conditions that fit the corpus grammar."""
    texts = [t for s in samples if s.condition.facts.get("grammar") for t in s.singles]
    return {"grammatical_share": sum(map(is_sentence, texts)) / len(texts)} if texts else {}


def label_probability(samples: Sequence[ConditionSamples]) -> dict[str, float]:
    """Compute ``label_probability``: mean p(label | text) of the constraints' classifiers, in 0..1."""
    constraint = ClassifierFactor()
    shares = [
        share
        for sample in samples
        for share in constraint.probabilities(sample.condition, sample.singles) or ()
    ]
    return {"label_probability": sum(shares) / len(shares)} if shares else {}
