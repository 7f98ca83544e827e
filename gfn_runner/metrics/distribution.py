"""Distances of distributions over outcomes that can be enumerated; in double precision, nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def kl_divergence(p_K: ArrayLike, q_K: ArrayLike) -> float:
    """KL(p ‖ q) = Σ p log(p/q), nats; infinite where q excludes what p has."""
    from scipy.special import rel_entr

    return float(rel_entr(p_K, q_K).sum())


def total_variation(p_K: ArrayLike, q_K: ArrayLike) -> float:
    """½ Σ |p − q|, in 0..1: the largest difference in the probability of any event."""
    return float(np.abs(np.subtract(p_K, q_K)).sum() / 2)


def expected_empirical_kl(q_K: ArrayLike, n_samples: int) -> float:
    """E KL(empirical ‖ q) over N samples of q, exactly, nats.

    KL is a sum over outcomes, and each count is binomial: no simulation. An outcome of probability 0
    adds nothing.

    Args:
        q_K: the true probabilities.
        n_samples: N, at least 1.
    """
    from scipy.special import xlogy
    from scipy.stats import binom

    count_N = np.arange(n_samples + 1)
    share_N = count_N / n_samples
    total = 0.0
    # Equal probabilities add the same: a uniform truth is one turn.
    different = np.unique(np.asarray(q_K, dtype=np.float64), return_counts=True)
    for probability, times in zip(*different, strict=True):
        if probability > 0:
            chance_N = binom.pmf(count_N, n_samples, min(probability, 1.0))
            total += float(times) * float(chance_N @ xlogy(share_N, share_N / probability))
    return total
