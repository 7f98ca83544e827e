"""Schedules at their ends, in the middle and beyond."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from gfn_runner.algorithms.schedules import Schedule, warmup_factor

SHAPES = ["linear", "cosine", "geometric"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ends", [(1.0, 0.25), (0.5, 2.0)])
def test_from_start_to_end_and_no_further(shape, ends):
    schedule = Schedule(*ends, steps=40, shape=shape)
    values = [schedule(step) for step in range(41)]
    assert values[0] == pytest.approx(ends[0]) and values[-1] == ends[1]
    assert values == sorted(values, reverse=ends[0] > ends[1])
    assert schedule(10_000) == ends[1] and schedule(-3) == pytest.approx(ends[0])


@pytest.mark.parametrize(
    ("shape", "at"),
    [("linear", (3.25, 2.5)), ("geometric", (2**1.5, 2.0)), ("cosine", (None, 2.5))],
)
def test_on_the_way(shape, at):
    schedule = Schedule(4.0, 1.0, steps=8, shape=shape)
    quarter = 4 - 3 * 0.5 * (1 - math.cos(math.pi / 4)) if at[0] is None else at[0]
    assert schedule(2) == pytest.approx(quarter) and schedule(4) == pytest.approx(at[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_no_steps_is_the_end_from_the_first_on(shape):
    assert Schedule(5.0, 2.0, steps=0, shape=shape)(0) == 2.0


@pytest.mark.parametrize("wrong", [{"start": 0.0}, {"end": -1.0}, {"steps": -1}, {"shape": "saw"}])
def test_bounds(wrong):
    with pytest.raises(ValidationError):
        Schedule(**wrong)


def test_warm_up_is_never_0_and_ends_at_1():
    assert [warmup_factor(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == warmup_factor(0, 1) == 1.0
