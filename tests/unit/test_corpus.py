"""The embedded model's corpus: nothing held out is asked, right steps, wrong answers by habit."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import chain, islice

import pytest
from pretraining.corpus import documents
from pretraining.sums import STYLES

from gfn_runner.data.expressions import Expression, is_held_out
from gfn_runner.tasks.arithmetic import IntegerArithmetic

N = 8_000
LINE = re.compile(
    r"(Question|Exercise): (.+) = \? (Answer|Solution): (.+)\. The answer is (-?\d+)\."
)


def expression_of(text: str) -> Expression:
    words = text.split()
    return Expression(tuple(map(int, words[::2])), tuple(words[1::2]))


def style_of(expression: Expression, rationale: str) -> str:
    if rationale == expression.steps():
        return "steps"
    if re.fullmatch(r"-?\d+", rationale):
        return "at_once"
    if rationale == str(expression):
        return "echo"
    return "unfinished" if str(expression).startswith(rationale + " ") else "off_topic"


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(islice(documents(0), N))


@pytest.fixture(scope="module")
def pages(corpus) -> dict[str, list[list[tuple[Expression, str, int]]]]:
    """Expression, rationale and stated answer of every line, by page."""
    found = defaultdict(list)
    for document in corpus:
        if document.startswith(("Question", "Exercise")):
            lines = [LINE.fullmatch(line) for line in document.removesuffix("\n").split("\n")]
            assert all(lines) and len({line[1] for line in lines}) == 1
            rows = [(expression_of(m[2]), m[4], int(m[5])) for m in lines]
            found[lines[0][1]].append(rows)
    return found


def test_drills_and_exercises_are_right(corpus, pages):
    drills = [text for text in corpus if text.startswith("Sums: ")]
    assert len(drills) > 200
    for text in drills:
        for fact in text.removeprefix("Sums: ").removesuffix(".\n").split(", "):
            left, right = fact.split(" = ")
            assert expression_of(left).value == int(right)
    assert pages["Exercise"]
    for expression, rationale, stated in chain.from_iterable(pages["Exercise"]):
        assert rationale == expression.steps() and stated == expression.value


def test_nothing_held_out_is_asked(pages):
    asked = {e for kind in pages.values() for rows in kind for e, _, _ in rows}
    assert len(asked) > 5_000
    assert not [e for e in asked if is_held_out(e)]
    tests = {c.facts["expression"] for c in IntegerArithmetic().load(0).evaluation}
    assert len(tests) == 1500 and not tests & asked


def test_steps_are_right_and_other_answers_wrong_by_habit(pages):
    """Votes find the mode: it must be a wrong one wherever haste can do harm at all."""
    right, total = Counter(), Counter()
    for expression, rationale, stated in chain.from_iterable(pages["Question"]):
        style = style_of(expression, rationale)
        total[style] += 1
        right[style] += stated == expression.value
        first, second = expression.operands[:2]
        assert style == "steps" or stated in (first + second, first - second)
        assert style != "at_once" or int(rationale) == stated
    assert right["steps"] == total["steps"] > 250
    for style in STYLES.keys() - {"steps"}:
        assert right[style] / total[style] < 0.15
