"""Votes with ties and failed parses, Wilson's intervals, and the posterior predictive, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gfn_runner.metrics.accuracy import majority, posterior_predictive, with_interval


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (500, 500), (0, 4), (0.5, 4), (1.25, 3)]
)
def test_the_interval_is_wilsons(successes, trials):
    p, z = successes / trials, 1.959963984540054
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    share, low, high = with_interval("right", p, trials).values()
    assert [low, share, high] == pytest.approx([middle - half, p, middle + half], abs=1e-12)
    assert 0 <= low <= share <= high <= 1
    with pytest.raises(ValueError, match="at least one trial"):
        with_interval("right", p, 0)


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        ([1, 2, 2], 2),
        ([2, 1, 1, 2], 2),
        ([1, 2, 2, 1], 1),
        ([3, 1, 2], 3),
        ([None, None, None, 5], 5),
        ([None, 4, None, 5, 5], 5),
        ([0, None, None], 0),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_and_its_ties(answers, winner):
    assert majority(answers) == winner


# -- posterior predictive ---------------------------------------------------------------------------


PROBABILITY = [[0.6, 0.3], [0.001, 0.004], [0.1, 0.2]]


def test_the_mean_is_of_probabilities():
    found = posterior_predictive(np.log(PROBABILITY))
    mean = [sum(column) / 3 for column in zip(*PROBABILITY, strict=True)]
    assert found == pytest.approx([value / sum(mean) for value in mean], abs=1e-15)
    tiny = posterior_predictive(np.log(PROBABILITY) - 2000)
    assert tiny == pytest.approx(found, rel=1e-9), "tiny probabilities do not vanish"
    # The mean of log-probabilities would say 1, and so would a vote.
    assert found.argmax() == 0
    assert np.mean(np.log(PROBABILITY), axis=0).argmax() == 1


def test_impossible_answers_and_ties():
    found = posterior_predictive([[-math.inf, -1.0, -1.0], [-math.inf, -2.0, -2.0]])
    assert found.tolist() == [0.0, 0.5, 0.5]
    assert found.argmax() == 1, "the first of the equally probable ones"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "samples × answers"),
        ([[]], "samples × answers"),
        ([-1.0, -2.0], "samples × answers"),
        ([[0.1, -1.0]], "at most 0"),
        ([[math.nan, -1.0]], "at most 0"),
        ([[-math.inf, -math.inf]], "impossible"),
    ],
)
def test_what_is_no_table_of_log_probabilities_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        posterior_predictive(table)
