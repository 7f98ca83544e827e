"""Posterior predictive over given answers, by Bayesian model average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Log-probabilities of single precision can exceed 0 by rounding.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Predictive:
    """Probabilities of the answers under all samples.

    Attributes:
        probability_A: normalised over the given answers; sums to 1.
        log_mean_A: log of 1/K Σ_k p(Y_a | X Z_k), not normalised, nats: what is left out of its sum
            is the probability of all other answers.
        best: index of the most probable answer; of equally probable ones the first.
    """

    probability_A: NDArray[np.float64]
    log_mean_A: NDArray[np.float64]
    best: int


def posterior_predictive(log_p_KA: ArrayLike) -> Predictive:
    """p(Y_a | X) ≈ 1/K Σ_k p(Y_a | X Z_k), then normalised over the answers (Hu et al. 2024, sec. 3.1).

    The mean is of probabilities as they are: a sample under which every given answer is improbable
    says little. Normalising each sample first would give all samples one vote.

    Args:
        log_p_KA: log p(Y_a | X Z_k), nats, of K samples Z and A answers; −∞ for impossible.

    Raises:
        ValueError: without samples or answers; at NaN or a probability above 1; if every answer is
            impossible under every sample.
    """
    from scipy.special import logsumexp

    values_KA = np.asarray(log_p_KA, dtype=np.float64)
    if values_KA.ndim != 2 or not values_KA.size:
        raise ValueError(f"a table of samples × answers is needed, not shape {values_KA.shape}")
    if not (values_KA <= TOLERANCE).all():
        raise ValueError("a log-probability is a number, and at most 0")
    if np.isneginf(values_KA).all():
        raise ValueError("every answer is impossible under every sample")
    log_mean_A = logsumexp(values_KA, axis=0) - np.log(len(values_KA))
    probability_A = np.exp(log_mean_A - logsumexp(log_mean_A))
    return Predictive(probability_A, log_mean_A, int(log_mean_A.argmax()))
