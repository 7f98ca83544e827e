"""Distances and their expected values, against sums written out."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from gfn_runner.metrics.distribution import (
    empirical,
    expected_empirical_kl,
    kl_divergence,
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


def test_the_expected_kl_of_many_samples_and_of_none():
    # 2N·KL of many samples is χ² with K − 1 degrees of freedom.
    found = expected_empirical_kl(np.full(50, 1 / 50), 20_000)
    assert found == pytest.approx(49 / 40_000, rel=1e-2)
    with pytest.raises(ValueError, match="needs samples"):
        expected_empirical_kl([1.0], 0)
