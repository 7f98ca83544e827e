"""Accuracy of answers: votes, model averages, shares and their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # 97.5 % of a standard normal distribution lie below
_ROUNDING = 1e-4  # by which log-probabilities of single precision can exceed 0


def with_interval(name: str, share: float, trials: int) -> dict[str, float]:
    """A share and its 95 % Wilson score interval, as ``name``, ``name_low`` and ``name_high``; in 0..1.

    Args:
        name: of the metric.
        share: of successes; a trial may be the mean of several samples, half a success where half of
            them are right. (scipy's interval takes whole successes only.)
        trials: independent ones.

    Raises:
        ValueError: if there are no trials.
    """
    if trials < 1:
        raise ValueError("a share needs at least one trial")
    weight = _Z * _Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # At the edges rounding would put the share outside of its interval.
    return {
        name: share,
        f"{name}_low": max(0.0, min(share, middle - half)),
        f"{name}_high": min(1.0, max(share, middle + half)),
    }


def majority(answers: Sequence[object | None]) -> object | None:
    """The most frequent answer; of equally frequent ones the first. Failed parses do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def posterior_predictive(log_p_KA: ArrayLike) -> NDArray[np.float64]:
    """p(Y_a | X) ≈ 1/K Σ_k p(Y_a | X Z_k), then normalised over the answers (Hu et al. 2024, sec. 3.1).

    The mean is of probabilities as they are: a sample under which every given answer is improbable
    says little. Normalising each sample first would give all samples one vote.

    Args:
        log_p_KA: log p(Y_a | X Z_k), nats, of K samples Z and A answers; −∞ for impossible.

    Returns:
        Probabilities of the answers, which sum to 1. Shape (A,).

    Raises:
        ValueError: without samples or answers; at NaN or a probability above 1; if every answer is
            impossible under every sample.
    """
    from scipy.special import logsumexp, softmax

    values_KA = np.asarray(log_p_KA, dtype=np.float64)
    if values_KA.ndim != 2 or not values_KA.size:
        raise ValueError(f"a table of samples × answers is needed, not shape {values_KA.shape}")
    if not (values_KA <= _ROUNDING).all():
        raise ValueError("a log-probability is a number, and at most 0")
    if np.isneginf(values_KA).all():
        raise ValueError("every answer is impossible under every sample")
    return softmax(logsumexp(values_KA, axis=0))
