"""Accuracy of answers: votes, single samples and their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054  # 97.5 % of a standard normal distribution lie below


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % Wilson interval, all in 0..1."""

    value: float
    low: float
    high: float


def proportion(successes: float, trials: int) -> Proportion:
    """Share of successes with the Wilson score interval.

    Args:
        successes: may be a fraction, where a trial is the mean of several samples: 0.5 of a question
            whose samples are right half the time. (scipy's interval takes whole successes only.)
        trials: independent ones.

    Raises:
        ValueError: if there are no trials.
    """
    if trials < 1:
        raise ValueError("a proportion needs at least one trial")
    share = successes / trials
    weight = _Z * _Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # At the edges rounding would put the share outside of its interval.
    return Proportion(
        share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
    )


def majority(answers: Sequence[object | None]) -> object | None:
    """The most frequent answer; of equally frequent ones the first. Failed parses do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None
