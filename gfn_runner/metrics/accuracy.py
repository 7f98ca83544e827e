"""Accuracy of answers: votes, single samples and their intervals; knows no task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % Wilson interval, all in 0..1."""

    value: float
    low: float
    high: float


def proportion(successes: int, trials: int) -> Proportion:
    """Share of successes with the Wilson score interval (scipy's).

    Raises:
        ValueError: if there are no trials.
    """
    from scipy.stats import binomtest

    if trials < 1:
        raise ValueError("a proportion needs at least one trial")
    interval = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return Proportion(successes / trials, float(interval.low), float(interval.high))


def majority(answers: Sequence[object | None]) -> object | None:
    """The most frequent answer; of equally frequent ones the first. Failed parses do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None
