"""Estimates of log Z from φ, against sums over everything that can be drawn."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch

from gfn_runner.metrics.distribution import kl_divergence
from gfn_runner.metrics.evidence import (
    effective_sample_size,
    evidence,
    importance_bound,
    mean_phi,
    phi_moments,
    phi_spread,
    terminal_phi,
)

from .test_objectives import ragged


def test_bounds_are_what_they_are_of_an_enumerated_policy():
    """Their averages over all draws of K samples stand to log Z as they must."""
    reward, policy = np.array([2.0, 1.0, 0.5]), np.array([0.2, 0.3, 0.5])
    posterior, log_z = reward / reward.sum(), math.log(reward.sum())
    phi = np.log(reward) - np.log(policy)
    kl = kl_divergence(policy, posterior)
    bounds = []
    for k in (1, 2, 4):
        draws = [list(draw) for draw in product(range(3), repeat=k)]
        chances = [math.prod(policy[draw]) for draw in draws]
        lower = np.dot(chances, [mean_phi(phi[draw]) for draw in draws])
        assert lower == pytest.approx(log_z - kl, abs=1e-12)
        upper = np.dot(
            [math.prod(posterior[draw]) for draw in draws], [mean_phi(phi[draw]) for draw in draws]
        )
        assert upper == pytest.approx(log_z + kl_divergence(posterior, policy), abs=1e-12)
        bound = [importance_bound(phi[draw]) for draw in draws]
        assert np.dot(chances, np.exp(bound)) == pytest.approx(reward.sum(), abs=1e-12)
        bounds.append(np.dot(chances, bound))
    assert mean_phi(phi) <= importance_bound(phi)
    assert bounds[0] == pytest.approx(log_z - kl)
    assert bounds[0] < bounds[1] < bounds[2] < log_z


def test_every_sample_of_an_exact_policy_gives_log_z():
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
    with pytest.raises(ValueError, match=r"^φ is a row of finite numbers, one a sample"):
        estimate(phi)


def test_every_reward_needs_its_probability():
    with pytest.raises(ValueError, match="shorter"):
        terminal_phi([1.0, 2.0], [1.0], 1.0)


def test_conditions_count_alike_and_single_samples_do_not():
    first = terminal_phi([-1.0, -3.0, -math.inf], [-2.0, -1.0, -1.0], 0.5)
    assert first.tolist() == [0.0, -5.0], "a string of reward 0 is left out"
    both = evidence([first, [1.0, 1.0, 1.0], [7.0], []])
    assert both["elbo"] == pytest.approx((-2.5 + 1.0) / 2)
    assert both["phi_spread"] == pytest.approx((2.5 + 0.0) / 2)
    assert both["ess"] == pytest.approx((effective_sample_size(first) / 2 + 1) / 2)
    assert both["log_z_bound"] == pytest.approx((importance_bound(first) + 1.0) / 2)
    assert evidence([[7.0]]) == {}


def test_the_spread_is_the_standard_deviation_over_terminable_states():
    phi_BS, terminable_BS, _, condition_B = ragged()
    mean_C, spread_C = phi_moments(phi_BS, terminable_BS, condition_B)
    assert mean_C.shape == spread_C.shape == (3,)
    for number in range(3):
        values = phi_BS[condition_B == number][terminable_BS[condition_B == number]]
        assert mean_C[number].item() == pytest.approx(values.mean().item(), abs=1e-5)
        assert spread_C[number].item() == pytest.approx(values.std(correction=0).item(), abs=1e-5)


def test_moments_of_a_single_state_and_of_none():
    phi_BS = torch.tensor([[3.0, 99.0], [-5.0, 99.0]])
    counted_BS = torch.tensor([[True, False], [False, False]])
    mean_C, spread_C = phi_moments(phi_BS, counted_BS, torch.tensor([4, 7]))
    assert mean_C.tolist() == [3.0, 0.0] and spread_C.tolist() == [0.0, 0.0]
