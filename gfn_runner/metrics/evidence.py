"""Evidence log Z of a posterior, estimated from φ of samples.

φ = log R/T − log q(z ⊤) of whole strings z, in nats. An exact policy has φ = log Z for every string. With
samples of the policy, z ~ q, the mean of φ is the evidence lower bound: log Z − KL(q ‖ posterior) in
expectation. The importance-weighted bound log mean exp φ lies between the two (Burda et al. 2016,
arXiv:1509.00519). With samples of the posterior itself, the mean of φ is the evidence upper bound:
log Z + KL(posterior ‖ q) in expectation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor


def terminal_phi(
    log_reward: Sequence[float], log_pf: Sequence[float], temperature: float
) -> NDArray[np.float64]:
    """Return φ of whole strings in nats, without strings of probability or reward 0. Shape (K,).

    Args:
        log_reward: untempered log R of each string, nats.
        log_pf: log q of each string, including its stop, nats.
        temperature: reward temperature T.
    """
    pairs = zip(log_reward, log_pf, strict=True)
    phi_K = np.array([reward / temperature - log_q for reward, log_q in pairs])
    return phi_K[np.isfinite(phi_K)]


def mean_phi(phi_K: ArrayLike) -> float:
    """Return the mean φ: the evidence lower bound for policy samples, the upper for posterior samples.

    Args:
        phi_K: φ of samples of one condition, nats. Shape (K,).

    Raises:
        ValueError: without samples, or if a φ is not finite; so do the other functions of ``phi_K``.
    """
    return float(_finite(phi_K).mean())


def importance_bound(phi_K: ArrayLike) -> float:
    """Return log mean exp φ of policy samples: below log Z on average, by less with more samples."""
    from scipy.special import logsumexp

    values_K = _finite(phi_K)
    return float(logsumexp(values_K) - np.log(len(values_K)))


def effective_sample_size(phi_K: ArrayLike) -> float:
    """Return (Σ w)² / Σ w² with w = exp φ, in samples: 1 if one has all the weight, K if all are equal."""
    values_K = _finite(phi_K)
    weight_K = np.exp(values_K - values_K.max())
    return float(weight_K.sum() ** 2 / np.square(weight_K).sum())


def phi_spread(phi_K: ArrayLike) -> float:
    """Return the standard deviation of φ in nats (over K, not K − 1); 0 for an exact policy."""
    return float(_finite(phi_K).std())


def evidence(phi: Iterable[ArrayLike]) -> dict[str, float]:
    """Return means over conditions: ``phi_spread``, ``elbo`` (mean φ), ``log_z_bound``, ``ess``.

    ``ess`` is a share of the samples. Conditions with a single sample have no spread and do not count;
    the result is empty if no condition counts.

    Args:
        phi: φ of policy samples for each condition, nats. Shape (K,) each.
    """
    counted = [values for own in phi if len(values := np.asarray(own)) > 1]
    if not counted:
        return {}
    return {
        "phi_spread": fmean(map(phi_spread, counted)),
        "elbo": fmean(map(mean_phi, counted)),
        "log_z_bound": fmean(map(importance_bound, counted)),
        "ess": fmean(effective_sample_size(own) / len(own) for own in counted),
    }


def phi_moments(phi_BS: Tensor, counted_BS: Tensor, condition_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of φ over the counted states of each condition, in nats.

    Args:
        phi_BS: φ of every state of a batch.
        counted_BS: which states count.
        condition_B: index of each trajectory's condition.

    Returns:
        ``mean_C`` and ``spread_C`` for the conditions that occur, in the order of their index.
    """
    group_B = condition_B.unique(return_inverse=True)[1]
    n_groups = int(group_B.max()) + 1
    weight_BS = counted_BS.float()
    group_BS = group_B[:, None].expand_as(phi_BS)

    def total(values_BS: Tensor) -> Tensor:
        zero_C = phi_BS.new_zeros(n_groups)
        return zero_C.index_add(0, group_BS.flatten(), (values_BS * weight_BS).flatten())

    count_C = total(phi_BS.new_ones(phi_BS.shape)).clamp(min=1)
    mean_C = total(phi_BS) / count_C
    variance_C = total((phi_BS - mean_C[group_B][:, None]).square()) / count_C
    return mean_C, variance_C.sqrt()


def _finite(phi_K: ArrayLike) -> NDArray[np.float64]:
    values_K = np.asarray(phi_K, dtype=np.float64)
    if values_K.ndim != 1 or not len(values_K) or not np.isfinite(values_K).all():
        raise ValueError("φ is a row of finite numbers, one a sample, at least one")
    return values_K
