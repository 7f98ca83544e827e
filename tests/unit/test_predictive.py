"""The posterior predictive, against means of probabilities written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gfn_runner.metrics.accuracy import posterior_predictive

PROBABILITY = [[0.6, 0.3], [0.001, 0.004], [0.1, 0.2]]


def test_the_mean_is_of_probabilities():
    found = posterior_predictive(np.log(PROBABILITY))
    mean = [sum(column) / 3 for column in zip(*PROBABILITY, strict=True)]
    assert found == pytest.approx([value / sum(mean) for value in mean], abs=1e-15)
    # The mean of log-probabilities would say 1, and so would a vote.
    assert found.argmax() == 0
    assert np.mean(np.log(PROBABILITY), axis=0).argmax() == 1


def test_tiny_probabilities_do_not_vanish():
    shifted = np.log(PROBABILITY) - 2000
    found, plain = posterior_predictive(shifted), posterior_predictive(np.log(PROBABILITY))
    assert found == pytest.approx(plain, rel=1e-9)


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
