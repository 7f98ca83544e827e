"""The embedded model's corpus: nothing held out is asked, right steps, wrong answers by habit."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import islice

import pytest

from gfn_runner.data.expressions import Expression, draw_expression, is_held_out
from gfn_runner.data.synthetic.corpus import WRITERS, documents, named_documents
from gfn_runner.data.synthetic.sums import (
    N_OPERANDS,
    STYLE_PERSISTENCE,
    STYLES,
    answer_line,
    habitual_answer,
)
from gfn_runner.tasks.arithmetic import IntegerArithmetic

N = 16_000
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


def test_the_same_seed_writes_the_same(corpus):
    assert list(islice(documents(0), 200)) == corpus[:200]
    assert list(islice(documents(1), 200)) != corpus[:200]
    assert all(text.endswith("\n") and text.isascii() for text in corpus)


def test_kinds_of_documents_have_their_shares(corpus):
    named = list(islice(named_documents(0), N))
    assert [text for _, text in named] == corpus
    counts = Counter(name for name, _ in named)
    assert sum(share for _, share in WRITERS.values()) == pytest.approx(1)
    for name, (_, share) in WRITERS.items():
        assert counts[name] / N == pytest.approx(share, abs=0.012)


def test_drills_are_right(corpus):
    drills = [text for text in corpus if text.startswith("Sums: ")]
    assert len(drills) > 400
    for text in drills:
        for fact in text.removeprefix("Sums: ").removesuffix(".\n").split(", "):
            left, right = fact.split(" = ")
            assert expression_of(left).value == int(right)


def test_nothing_held_out_is_asked(pages):
    asked = {e for kind in pages.values() for rows in kind for e, _, _ in rows}
    assert len(asked) > 10_000
    assert not [e for e in asked if is_held_out(e)]
    # The task's own test questions are of the held-out side, hence none of these.
    tests = {c.facts["expression"] for c in IntegerArithmetic().load(0).evaluation}
    assert len(tests) == 1500 and not tests & asked


def test_numbers_of_operands_have_their_shares(pages):
    counts = Counter(
        len(e.operands) for kind in pages.values() for rows in kind for e, _, _ in rows
    )
    for n, share in N_OPERANDS.items():
        assert counts[n] / counts.total() == pytest.approx(share, abs=0.02)


def test_exercises_are_right_step_by_step(pages):
    for rows in pages["Exercise"]:
        for expression, rationale, stated in rows:
            assert rationale == expression.steps() and stated == expression.value


def test_styles_have_their_shares_and_persist_on_a_page(pages):
    styles = [[style_of(e, r) for e, r, _ in rows] for rows in pages["Question"]]
    assert sum(STYLES.values()) == pytest.approx(1)
    first = Counter(page[0] for page in styles)
    for style, share in STYLES.items():
        assert first[style] / len(styles) == pytest.approx(share, abs=0.025)
    later = [(page[0], style) for page in styles for style in page[1:]]
    kept = sum(one == other for one, other in later) / len(later)
    by_chance = sum(share**2 for share in STYLES.values())
    expected = STYLE_PERSISTENCE + (1 - STYLE_PERSISTENCE) * by_chance
    assert kept == pytest.approx(expected, abs=0.015)


def test_steps_are_right_and_other_answers_wrong_by_habit(pages):
    """Votes find the mode: it must be a wrong one wherever haste can do harm at all."""
    right = Counter()
    total = Counter()
    for rows in pages["Question"]:
        for expression, rationale, stated in rows:
            style = style_of(expression, rationale)
            total[style] += 1
            right[style] += stated == expression.value
            first, second = expression.operands[:2]
            if style == "steps":
                assert stated == expression.value
            else:
                assert stated in (first + second, first - second)
                assert style != "at_once" or int(rationale) == stated
    assert right["steps"] == total["steps"] > 500
    for style in STYLES.keys() - {"steps"}:
        assert right[style] / total[style] < 0.15


def test_the_habit_is_the_first_sum_and_is_never_right_by_accident():
    rng = random.Random(0)
    for _ in range(300):
        expression = draw_expression(rng, rng.randint(2, 6))
        answers = Counter(habitual_answer(rng, expression) for _ in range(60))
        early = expression.partial_results()[0]
        (mode, count), *_ = answers.most_common()
        if early != expression.value:
            assert mode == early and count > 40
        elif expression.operands[1]:
            assert expression.value not in answers
        assert len(answers) <= 2


def test_an_unfinished_line_stops_inside_its_expression():
    rng, expression = random.Random(0), Expression((1, 2, 3), ("+", "-"))
    lines = {answer_line(rng, expression, "unfinished") for _ in range(100)}
    rationales = {LINE.fullmatch(line.rstrip("\n"))[4] for line in lines}
    assert rationales == {"1 +", "1 + 2", "1 + 2 -"}
