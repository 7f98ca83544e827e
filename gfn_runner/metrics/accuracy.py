"""Accuracy of answers: majority votes, posterior predictive, shares and their confidence intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_ROUNDING = 1e-4  # single-precision log-probabilities can exceed 0 by this much


def with_interval(name: str, share: float, trials: int) -> dict[str, float]:
    """Return a share and its 95 % Wilson score interval: ``name``, ``name_low``, ``name_high``; in 0..1.

    Args:
        name: name of the metric.
        share: share of successes; a trial may be the mean of several samples, half a success if half of
            them are right. (scipy's interval accepts whole successes only.)
        trials: number of independent trials.

    Raises:
        ValueError: if there are no trials.
    """
    if trials < 1:
        raise ValueError("a share needs at least one trial")
    weight = _Z * _Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    # At 0 and 1, rounding could put the share outside its interval.
    return {
        name: share,
        f"{name}_low": max(0.0, min(share, middle - half)),
        f"{name}_high": min(1.0, max(share, middle + half)),
    }


def majority(answers: Sequence[object | None]) -> object | None:
    """Return the most frequent answer, the first one on ties. Failed parses (``None``) do not vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def posterior_predictive(log_p_KA: ArrayLike) -> NDArray[np.float64]:
    """Return p(Y_a | X) ≈ 1/K Σ_k p(Y_a | X Z_k), normalized over answers (Hu et al. 2024, sec. 3.1).

    Unnormalized probabilities are averaged: a sample under which every given answer is improbable has
    little weight. Normalizing each sample first would give all samples the same weight.

    Args:
        log_p_KA: log p(Y_a | X Z_k) in nats of K samples Z and A answers; −∞ if impossible.

    Returns:
        Probabilities of the answers, which sum to 1. Shape (A,).

    Raises:
        ValueError: without samples or answers; for NaN or a probability above 1; if every answer is
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
