"""Schedules at their ends, in the middle and beyond."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from gfn_runner.algorithms.schedules import Schedule, linear_schedule

SHAPES = ["linear", "cosine", "geometric"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", [(1.0, 0.25), (0.5, 2.0)])
def test_from_start_to_end_and_no_further(shape, ends):
    schedule = Schedule(*ends, steps=40, shape=shape)
    values = [schedule(step) for step in range(41)]
    assert values[0] == pytest.approx(ends[0]) and values[-1] == ends[1]
    assert values == sorted(values, reverse=ends[0] > ends[1])
    assert schedule(10_000) == ends[1] and schedule(-3) == pytest.approx(ends[0])
    assert Schedule(*ends, steps=0, shape=shape)(0) == ends[1]


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("linear", 3.25, 2.5),
        ("geometric", 2**1.5, 2.0),
        ("cosine", 4 - 1.5 * (1 - math.cos(math.pi / 4)), 2.5),
    ],
)
def test_on_the_way(shape, quarter, half):
    schedule = Schedule(4.0, 1.0, steps=8, shape=shape)
    assert schedule(2) == pytest.approx(quarter) and schedule(4) == pytest.approx(half)


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"end": -1.0}, {"steps": -1}, {"shape": "saw"}])
def test_bounds(wrong):
    with pytest.raises(ValidationError):
        Schedule(**wrong)


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]),
        ({"warmup_steps": 1}, [1.0, 1.0]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        # Two steps of decay are left of six; it never gets to 0, whatever comes afterwards.
        ({"warmup_steps": 4, "decay": True}, [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 1e-3, 1e-3]),
        ({"warmup_steps": 0, "decay": True}, [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 1e-3]),
        ({"warmup_steps": 5, "decay": True}, [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1e-3]),
        ({"warmup_steps": 6, "decay": True}, [1 / 6, 2 / 6, 0.5, 4 / 6, 5 / 6, 1.0, 1.0, 1e-3]),
        # Every round of EM begins with a warm-up.
        (
            {"warmup_steps": 4, "decay": True, "n_rounds": 2},
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5],
        ),
    ],
)
def test_learning_rate_of_each_step(options, factors):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = linear_schedule(optimizer, total_steps=6, **options)
    rates = []
    for _ in factors:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2.0 * factor for factor in factors], rel=1e-12)
