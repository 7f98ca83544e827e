"""Expressions: their text, their value, their steps, and the split that everybody shares."""

from __future__ import annotations

import random

import pytest

from gfn_runner.data.expressions import Expression, draw_expression, is_held_out, question

from ..tiny_models import signed_sum


def test_the_example_of_the_docstring():
    expression = Expression((6, 0, 4, 8), ("-", "-", "-"))
    assert str(expression) == "6 - 0 - 4 - 8" and expression.value == -6
    assert expression.partial_results() == (6, 2, -6)
    assert expression.steps() == "6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6"
    assert expression.steps(results=False) == "6 - 0 =, 6 - 4 =, 2 - 8 ="
    assert question(expression) == "Question: 6 - 0 - 4 - 8 = ? Answer:"


def test_values_are_sums_of_signed_numbers():
    rng = random.Random(0)
    for _ in range(300):
        expression = draw_expression(rng, rng.randint(2, 9))
        assert expression.value == signed_sum(str(expression))
        for step in expression.steps().split(", "):
            left, right = step.split(" = ")
            assert signed_sum(left) == int(right)
        assert int(expression.steps().rsplit(" ", 1)[1]) == expression.value


def test_the_split_is_by_text_and_a_fifth_of_all():
    rng = random.Random(0)
    drawn = [draw_expression(rng, 4) for _ in range(4000)]
    share = sum(map(is_held_out, drawn)) / len(drawn)
    assert 0.17 < share < 0.23
    # Fixed for ever: the embedded model was trained under this split.
    first = [f"{a} + {b}" for a in range(10) for b in range(10)]
    held_out = [t for t in first if is_held_out(Expression((int(t[0]), int(t[-1])), ("+",)))]
    assert held_out[:4] == ["0 + 2", "0 + 3", "2 + 1", "2 + 5"] and len(held_out) == 21


@pytest.mark.parametrize("held_out", [True, False, None])
def test_draws_keep_to_their_side_and_to_one_digit(held_out):
    rng = random.Random(0)
    drawn = [draw_expression(rng, 3, held_out=held_out) for _ in range(300)]
    assert set(map(is_held_out, drawn)) == ({True, False} if held_out is None else {held_out})
    assert {digit for expression in drawn for digit in expression.operands} == set(range(10))
