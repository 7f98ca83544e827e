"""Distances between distributions over enumerable outcomes; in double precision, nats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Allowed deviation of a sum from 1: distributions are often computed in single precision.
TOLERANCE = 1e-4


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p ‖ q) = Σ p log(p/q) in nats; infinite if q is 0 where p is not.

    Args:
        p, q: probabilities of the same outcomes. Shape (K,).

    Raises:
        ValueError: if either is not a distribution or their shapes differ; so does total variation.
    """
    from scipy.special import rel_entr

    return float(rel_entr(*_two(p, q)).sum())


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Return ½ Σ |p − q|, in 0..1: the largest difference in the probability of any event."""
    p_K, q_K = _two(p, q)
    return float(np.abs(p_K - q_K).sum() / 2)


def empirical(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each outcome among samples. Shape (K,).

    Args:
        counts: how often each outcome was drawn; 0 for those that were not. Shape (K,).

    Raises:
        ValueError: if a count is negative, or no count is above 0.
    """
    count_K = np.asarray(counts, dtype=np.float64)
    if count_K.ndim != 1 or not (count_K >= 0).all() or not 0 < count_K.sum() < np.inf:
        raise ValueError("counts are a row of numbers from 0, at least one of them above 0")
    return count_K / count_K.sum()


def expected_empirical_kl(q: ArrayLike, n_samples: int) -> float:
    """Return E KL(empirical ‖ q) over N samples of q, computed exactly, in nats.

    KL is a sum over outcomes and each count is binomial, so no simulation is needed. Outcomes of
    probability 0 contribute nothing.

    Args:
        q: the true probabilities; ``np.full(K, 1 / K)`` for a uniform distribution. Shape (K,).
        n_samples: number of samples N.

    Raises:
        ValueError: if ``q`` is not a distribution, or for fewer than one sample.
    """
    from scipy.special import xlogy
    from scipy.stats import binom

    q_K = _distribution(q)
    if n_samples < 1:
        raise ValueError(f"needs samples, not {n_samples}")
    count_N = np.arange(n_samples + 1)
    share_N = count_N / n_samples
    total = 0.0
    # Equal probabilities contribute equally: a uniform distribution takes one iteration.
    for probability, times in zip(*np.unique(q_K, return_counts=True), strict=True):
        if probability > 0:
            chance_N = binom.pmf(count_N, n_samples, min(probability, 1.0))
            total += float(times) * float(chance_N @ xlogy(share_N, share_N / probability))
    return total


def _two(p: ArrayLike, q: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p_K, q_K = _distribution(p), _distribution(q)
    if p_K.shape != q_K.shape:
        raise ValueError(f"distributions over {len(p_K)} and {len(q_K)} outcomes")
    return p_K, q_K


def _distribution(values: ArrayLike) -> NDArray[np.float64]:
    value_K: Any = np.asarray(values, dtype=np.float64)
    if value_K.ndim != 1 or not (value_K >= 0).all() or abs(value_K.sum() - 1) > TOLERANCE:
        raise ValueError("a distribution is a row of numbers from 0 that sum to 1")
    return value_K
