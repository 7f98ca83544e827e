"""Distances of distributions, and log Z from terminal φ: pure functions in double precision.

For what can be enumerated: how far samples are from the truth, and how far they would be if they were
drawn from it. For what cannot: estimates of log Z from φ = log R/T − log q(z⊤) of the policy's own
samples of one condition. With z ~ q, mean φ = log Z − KL(q ‖ posterior) on average, and
mean φ ≤ log mean exp φ, whose average is ≤ log Z (Burda et al. 2016, arXiv:1509.00519). All in nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# What may be missing of 1: distributions are often made in single precision.
TOLERANCE = 1e-4


def kl_divergence(p: ArrayLike, q: ArrayLike) -> float:
    """KL(p ‖ q) = Σ p log(p/q), nats; infinite where q excludes what p has.

    Args:
        p, q: probabilities of the same outcomes. Shape (K,).

    Raises:
        ValueError: if either is no distribution, or their shapes differ.
    """
    from scipy.special import rel_entr

    p_K, q_K = _two(p, q)
    return float(rel_entr(p_K, q_K).sum())


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """½ Σ |p − q|, in 0..1: the largest difference in the probability of any event.

    Args:
        p, q: probabilities of the same outcomes. Shape (K,).

    Raises:
        ValueError: if either is no distribution, or their shapes differ.
    """
    p_K, q_K = _two(p, q)
    return float(np.abs(p_K - q_K).sum() / 2)


def empirical(counts: ArrayLike) -> NDArray[np.float64]:
    """Share of each outcome among samples. Shape (K,).

    Args:
        counts: how often each outcome was drawn; 0 for those that were not. Shape (K,).

    Raises:
        ValueError: at negative counts, or none at all.
    """
    count_K = np.asarray(counts, dtype=np.float64)
    if count_K.ndim != 1 or not (count_K >= 0).all() or not 0 < count_K.sum() < np.inf:
        raise ValueError("counts are a row of numbers from 0, at least one of them above 0")
    return count_K / count_K.sum()


def kl_noise_floor(n_outcomes: int, n_samples: int) -> float:
    """(K − 1) / 2N: about the KL(empirical ‖ true) of N samples of the truth itself, nats.

    It is the first term for many samples (2N·KL is then χ² with K − 1 degrees of freedom), and too
    high where outcomes are expected less than once; :func:`expected_empirical_kl` is exact.

    Raises:
        ValueError: at fewer than one outcome or sample.
    """
    _need_samples(n_outcomes, n_samples)
    return (n_outcomes - 1) / (2 * n_samples)


def expected_empirical_kl(q: ArrayLike, n_samples: int) -> float:
    """E KL(empirical ‖ q) over N samples of q, exactly, nats.

    KL is a sum over outcomes, and each count is binomial: no simulation. An outcome of probability 0
    adds nothing.

    Args:
        q: the true probabilities; ``np.full(K, 1 / K)`` for a uniform truth. Shape (K,).
        n_samples: N.

    Raises:
        ValueError: if ``q`` is no distribution, or at fewer than one sample.
    """
    from scipy.special import xlogy
    from scipy.stats import binom

    q_K = _distribution(q)
    _need_samples(len(q_K), n_samples)
    count_N = np.arange(n_samples + 1)
    share_N = count_N / n_samples
    total = 0.0
    # Equal probabilities add the same: a uniform truth is one turn.
    for probability, times in zip(*np.unique(q_K, return_counts=True), strict=True):
        if probability > 0:
            chance_N = binom.pmf(count_N, n_samples, min(probability, 1.0))
            total += float(times) * float(chance_N @ xlogy(share_N, share_N / probability))
    return total


def mean_phi(phi_K: ArrayLike) -> float:
    """Mean terminal φ: log Z − KL(policy ‖ posterior) on average over samples of the policy.

    Args:
        phi_K: terminal φ of the policy's own samples of one condition, nats. Shape (K,).

    Raises:
        ValueError: without samples, or at φ that is not finite; so do all that follow.
    """
    return float(_phi(phi_K).mean())


def importance_bound(phi_K: ArrayLike) -> float:
    """log mean exp φ: an estimate of log Z, too low on average and less so with more samples.

    Args:
        phi_K: terminal φ of the policy's own samples of one condition, nats. Shape (K,).
    """
    from scipy.special import logsumexp

    values_K = _phi(phi_K)
    return float(logsumexp(values_K) - np.log(len(values_K)))


def effective_sample_size(phi_K: ArrayLike) -> float:
    """(Σ w)² / Σ w² with w = exp φ, in samples: from 1, all weight on one, to K, all alike.

    Args:
        phi_K: terminal φ of the policy's own samples of one condition, nats. Shape (K,).
    """
    values_K = _phi(phi_K)
    weight_K = np.exp(values_K - values_K.max())
    return float(weight_K.sum() ** 2 / np.square(weight_K).sum())


def phi_spread(phi_K: ArrayLike) -> float:
    """Standard deviation of terminal φ, nats (over K, not K − 1); 0 for an exact policy.

    Args:
        phi_K: terminal φ of samples of one condition, nats. Shape (K,).
    """
    return float(_phi(phi_K).std())


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


def _phi(phi_K: ArrayLike) -> NDArray[np.float64]:
    values_K = np.asarray(phi_K, dtype=np.float64)
    if values_K.ndim != 1 or not len(values_K) or not np.isfinite(values_K).all():
        raise ValueError("φ is a row of finite numbers, one a sample, at least one")
    return values_K


def _need_samples(n_outcomes: int, n_samples: int) -> None:
    if n_outcomes < 1 or n_samples < 1:
        raise ValueError(f"needs outcomes and samples, not {n_outcomes} and {n_samples}")
