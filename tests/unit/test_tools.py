"""The calculator: which ends of a text it answers, and that its answers are right."""

from __future__ import annotations

import random

import pytest

from gfn_runner.data.expressions import draw_expression
from gfn_runner.data.tools import Calculator

answer = Calculator().answer
of_expressions = Calculator("expression").answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 - 8 =", " -6"),
        ("-6 + 3 =", " -3"),
        ("6 - 4 = 2, 2 - 8 = -6, -6 + 3 =", " -3"),
        ("-4 - -1 =", None),
        ("6 - 0 = 6, 6 - 4 = 2, 2 - 8 = ", " -6"),
        ("= ? Answer: 12 + 30 =", " 42"),
        ("a b.\n7-7=", " 0"),
        ("1+2=", " 3"),
        (" 007 + 1 =", " 8"),
        ("9" * 18 + " + 1 =", " 1" + "0" * 18),
        ("9" * 19 + " + 1 =", None),
        ("1 + 2", None),
        ("", None),
        ("=", None),
        ("1 + =", None),
        ("+ 1 =", None),
        ("1 + 2 = 3 =", None),
        ("2 * 3 =", None),
        ("cat 1 + 2 =", None),
        ("__import__('os') =", None),
        ("٣ + 1 =", None),
        ("1 + 2 == ", None),
        ("1.5 + 2 =", None),
        ("Say 1.5. 1 + 2 =", " 3"),
    ],
)
def test_answers(text, expected):
    assert answer(text) == of_expressions(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 + 3 =", " 6"),
        ("-6 + 3 - 8 =", " -11"),
        ("2 - 8 = -6, -6 - 1 - 1 =", " -8"),
        ("5 =", " 5"),
        ("-5 =", " -5"),
    ],
)
def test_only_one_operation_is_answered_unless_whole_expressions_are_asked_for(text, expected):
    assert answer(text) is None
    assert of_expressions(text) == expected


def test_it_works_every_chain_step_by_step_and_at_once():
    rng = random.Random(0)
    for _ in range(300):
        expression = draw_expression(rng, rng.randint(2, 6))
        assert of_expressions(f"{expression} =") == f" {expression.value}"
        text = ""
        for step in expression.steps(results=False).split(", "):
            text += (", " if text else "") + step
            assert answer(text) == of_expressions(text)
            text += answer(text)
        assert text == expression.steps()
