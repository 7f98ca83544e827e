"""Random numbers: their distributions, the condition, and distances of samples."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from gfn_runner.metrics.distribution import expected_empirical_kl
from gfn_runner.tasks.random_number import RandomNumbers

from .test_single_tasks import samples
from .test_text_tasks import problems_of

LOW, HIGH = 3, 12


FAMILIES = {
    "uniform": (0.5, lambda k: stats.randint(LOW, HIGH + 1).pmf(k)),
    "binomial": (0.3, lambda k: stats.binom(HIGH - LOW, 0.3, loc=LOW).pmf(k)),
    "poisson": (2.5, lambda k: stats.poisson(2.5, loc=LOW).pmf(k)),
    "geometric": (0.2, lambda k: stats.geom(0.2, loc=LOW - 1).pmf(k)),
    "zipf": (1.5, lambda k: stats.zipf(1.5, loc=LOW - 1).pmf(k)),
    "normal": (2.0, lambda k: stats.norm((LOW + HIGH) / 2, 2.0).pdf(k)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_distribution_is_scipys_cut_to_its_range(name):
    parameter, mass = FAMILIES[name]
    task = RandomNumbers(low=LOW, high=HIGH, distribution=name, parameter=parameter)
    found = task.probabilities()
    known = [mass(k) for k in range(LOW, HIGH + 1)]
    assert list(found) == list(range(LOW, HIGH + 1)) and not problems_of(task)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)
    assert list(found.values()) == pytest.approx([value / sum(known) for value in known])


def test_the_condition_is_the_same_in_training_and_evaluation():
    task = RandomNumbers(low=0, high=2, distribution="binomial", parameter=0.7, penalty=2.0)
    data = task.load(0)
    (train,), (evaluation,) = data.train, data.evaluation
    assert evaluation.group == "numbers" and train.group == "train" and train.terms == ()
    assert train.prompt == task.prompt and train.facts == evaluation.facts
    values = [math.log(0.09), math.log(0.42), math.log(0.49)]
    assert list(train.facts["table"]) == [" 0", " 1", " 2"]
    assert list(train.facts["table"].values()) == pytest.approx(values)
    (factor,) = task.constraints()
    assert factor.penalty == 2.0
    assert task.condition_for(task.prompt + " ", 0) == train
    assert task.condition_for("another", 0) is None


def test_distances_are_of_the_valid_numbers():
    task = RandomNumbers(low=0, high=2, distribution="binomial", parameter=0.7)
    (condition,) = task.load(0).evaluation
    drawn = samples(condition, " 2", " 2", " 1", "2", " 3", " 2", " 1", "", " 1", " 2")
    measured = task.metrics([drawn])
    target, share = [0.09, 0.42, 0.49], [0.0, 3 / 7, 4 / 7]
    kl = sum(p * math.log(p / q) for p, q in zip(share, target, strict=True) if p)
    floor = expected_empirical_kl(target, 7)
    assert measured == {
        "invalid_share/numbers": pytest.approx(0.3),
        "n_samples/numbers": 10.0,
        "kl/numbers": pytest.approx(kl),
        "tv/numbers": pytest.approx(0.09),
        "kl_floor/numbers": pytest.approx(floor),
        "kl_over_floor/numbers": pytest.approx(kl / floor),
    }
    assert task.metrics([samples(condition, "x", "2")]) == {
        "invalid_share/numbers": 1.0, "n_samples/numbers": 2.0,
    }  # fmt: skip
