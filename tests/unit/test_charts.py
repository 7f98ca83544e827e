"""Axes of charts: powers of ten with values that do not fit, shares, numbers; without any run."""

from __future__ import annotations

import re

import pytest

from gfn_runner.report.charts import Curve, log_floor, svg
from gfn_runner.report.panels import panel


def numbers_up(made):
    """What stands at the ticks of the vertical axis, from below."""
    return re.findall(r'<text class="y"[^>]*>(.*?)</text>', made)


def heights(made):
    path = re.search(r'class="curve \w+" d="([^"]*)"', made).group(1)
    return [float(y) for y in re.findall(r" (\d+\.\d)", path)]


@pytest.mark.parametrize(
    ("values", "floor"),
    [
        ([1.0, 10.0, 1e-5], 1e-5),
        ([0.0, 2.0, 8.0], 2.0),
        # Of thirty, one that is tiny; all others keep their place.
        ([4e-13, *[5.0] * 20, *[50.0] * 9], 0.5),
        ([1e-9, 1e-7, 1e-5, 1e-3, 1e-1, 1e1], 1e-5),
    ],
)
def test_an_axis_of_powers_begins_where_the_values_are(values, floor):
    assert log_floor(values) == pytest.approx(floor)


@pytest.mark.parametrize("tiny", [0.0, 4e-13])
def test_a_value_too_small_for_the_axis_stands_at_its_edge_and_is_named(tiny):
    values = [tiny, *[5.0] * 20, *[50.0] * 9]
    made = panel("loss", [Curve("", list(range(30)), values)], log=True)
    assert "10" in numbers_up(made.svg) and not any("10⁻" in n for n in numbers_up(made.svg))
    first, *others = heights(made.svg)
    assert first == 200.0 and max(others) < 196.0, "only the tiny one at the lower edge"
    said = {0.0: "0", 4e-13: "4·10⁻¹³"}[tiny]
    assert f"1 value lies lower than the axis, down to {said}:" in made.note
    assert panel("loss", [Curve("", [1, 2], [5.0, 50.0])], log=True).note == ""


def test_an_axis_of_powers_with_values_below_zero_is_a_plain_one_and_says_so():
    made = panel("loss", [Curve("", [1, 2], [-1.0, 100.0])], log=True)
    assert numbers_up(made.svg) == ["0", "25", "50", "75", "100"]
    assert made.note == "Not in powers of ten: some values are below 0."


@pytest.mark.parametrize(
    ("constant", "limits"), [(100.0, (0, 100)), (0.0, (0, 100)), (1.0, (0, 1))]
)
def test_no_axis_of_shares_passes_what_they_can_be(constant, limits):
    made = svg([Curve("", [1, 2], [constant] * 2)], title="t", limits=limits)
    shown = [float(n) for n in numbers_up(made)]
    assert len(shown) >= 2 and limits[0] <= min(shown) and max(shown) <= limits[1]


def test_without_limits_equal_values_get_room_on_both_sides():
    made = svg([Curve("", [1, 2], [100.0] * 2)], title="t")
    assert float(numbers_up(made)[-1]) > 100 > float(numbers_up(made)[0])
