"""Distances, noise floors and estimates of log Z, against sums written out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from gfn_runner.metrics.distribution import (
    effective_sample_size,
    empirical,
    expected_empirical_kl,
    importance_bound,
    kl_divergence,
    kl_noise_floor,
    mean_phi,
    phi_spread,
    total_variation,
)

P, Q = [0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4]


def test_kl_is_the_sum_written_out():
    expected = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True) if p)
    assert kl_divergence(P, Q) == pytest.approx(expected, abs=1e-15)
    assert kl_divergence(Q, P) == math.inf, "Q has what P excludes"
    assert kl_divergence(P, P) == 0


def test_total_variation_is_the_largest_difference_of_an_event():
    events = product([0, 1], repeat=4)
    largest = max(abs(np.dot(event, np.subtract(P, Q))) for event in events)
    assert total_variation(P, Q) == pytest.approx(largest, abs=1e-15)
    assert total_variation([1, 0], [0, 1]) == 1
    assert total_variation(P, P) == 0


@pytest.mark.parametrize("distance", [kl_divergence, total_variation])
@pytest.mark.parametrize(
    ("p", "q"),
    [
        ([0.5, 0.4], [0.5, 0.5]),
        ([0.5, 0.5], [1.5, -0.5]),
        ([1.0], [0.5, 0.5]),
        ([math.nan, 1], [0.5, 0.5]),
        ([], []),
        ([[0.5, 0.5]], [[0.5, 0.5]]),
    ],
)
def test_what_is_no_distribution_is_refused(distance, p, q):
    with pytest.raises(ValueError, match="distribution"):
        distance(p, q)


def test_shares_of_counts():
    assert empirical([3, 0, 1]).tolist() == [0.75, 0.0, 0.25]
    for wrong in ([0, 0], [-1, 2], [], [math.inf, 1], [math.nan, 1]):
        with pytest.raises(ValueError, match="counts"):
            empirical(wrong)


@pytest.mark.parametrize("q", [[1 / 3] * 3, [0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0]])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_expected_kl_of_samples_is_the_mean_over_all_that_can_be_drawn(q, n):
    expected = 0.0
    for drawn in product(range(len(q)), repeat=n):
        chance = math.prod(q[outcome] for outcome in drawn)
        if chance:
            counts = [drawn.count(outcome) for outcome in range(len(q))]
            expected += chance * kl_divergence(empirical(counts), q)
    assert expected_empirical_kl(q, n) == pytest.approx(expected, abs=1e-12)


def test_the_noise_floor_is_what_the_exact_value_tends_to():
    uniform = np.full(50, 1 / 50)
    assert kl_noise_floor(50, 1000) == 49 / 2000
    assert expected_empirical_kl(uniform, 20_000) == pytest.approx(
        kl_noise_floor(50, 20_000), rel=1e-2
    )
    # Few samples: one of them has KL log K, and the first term of the series is far above that.
    assert expected_empirical_kl(uniform, 1) == pytest.approx(math.log(50))
    assert kl_noise_floor(50, 1) > math.log(50)
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="outcomes and samples"):
            kl_noise_floor(*wrong)
    with pytest.raises(ValueError, match="outcomes and samples"):
        expected_empirical_kl([1.0], 0)


def test_estimates_of_log_z_are_what_they_are_of_an_enumerated_policy():
    """Their averages over all draws of K samples stand to log Z as they must."""
    reward, policy = np.array([2.0, 1.0, 0.5]), np.array([0.2, 0.3, 0.5])
    log_z = math.log(reward.sum())
    phi = np.log(reward) - np.log(policy)
    kl = kl_divergence(policy, reward / reward.sum())
    bounds = []
    for k in (1, 2, 4):
        draws = list(product(range(3), repeat=k))
        chances = [math.prod(policy[list(draw)]) for draw in draws]
        means = [mean_phi(phi[list(draw)]) for draw in draws]
        assert np.dot(chances, means) == pytest.approx(log_z - kl, abs=1e-12)
        bound = [importance_bound(phi[list(draw)]) for draw in draws]
        assert np.dot(chances, np.exp(bound)) == pytest.approx(reward.sum(), abs=1e-12)
        bounds.append(np.dot(chances, bound))
    assert mean_phi(phi) <= importance_bound(phi)
    assert log_z - kl == pytest.approx(bounds[0])
    assert bounds[0] < bounds[1] < bounds[2] < log_z


def test_an_exact_policy_tells_log_z_by_every_sample():
    phi = [-3.5] * 7
    assert (mean_phi(phi), phi_spread(phi)) == (-3.5, 0.0)
    assert importance_bound(phi) == pytest.approx(-3.5, abs=1e-15)
    assert effective_sample_size(phi) == pytest.approx(7)


def test_weights_and_their_spread_written_out_also_far_from_zero():
    phi = np.array([0.3, -1.2, 2.0, 0.0])
    weight = [math.exp(value) for value in phi]
    expected = sum(weight) ** 2 / sum(w * w for w in weight)
    for shift in (0.0, -900.0, 900.0):
        assert effective_sample_size(phi + shift) == pytest.approx(expected, rel=1e-9)
        assert importance_bound(phi + shift) == pytest.approx(
            math.log(sum(weight) / 4) + shift, rel=1e-12
        )
        mean = sum(phi) / 4
        variance = sum((value - mean) ** 2 for value in phi) / 4
        assert phi_spread(phi + shift) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert effective_sample_size([0.0, -1000.0]) == 1
    # Double precision, also of what comes in single precision.
    large = np.array([1e8, 1e8 + 8], dtype=np.float32)
    assert mean_phi(large) == 1e8 + 4


@pytest.mark.parametrize(
    "estimate", [mean_phi, importance_bound, effective_sample_size, phi_spread]
)
@pytest.mark.parametrize("phi", [[], [0.0, -math.inf], [math.nan], [[1.0]]])
def test_estimates_of_nothing_are_refused(estimate, phi):
    with pytest.raises(ValueError, match="finite numbers"):
        estimate(phi)
