"""Constraints on texts: what counts as met, and constraints that no string can meet."""

from __future__ import annotations

import pytest

from gfn_runner.errors import UserError
from gfn_runner.rewards import text_constraints
from gfn_runner.rewards.text_constraints import ClassifierLabel, TextConstraint


@pytest.mark.parametrize(
    ("constraint", "text", "violations"),
    [
        (TextConstraint(words=("fox",)), " The Fox runs", 0),
        (TextConstraint(words=("fox",)), "foxes", 1),
        (TextConstraint(words=("fox",)), "fox-like", 0),
        (TextConstraint(words=("fox", "river")), "a fox", 1),
        (TextConstraint(words=("fox", "river")), "", 2),
        (TextConstraint(words=("ice cream",)), "an Ice  cream!", 0),
        (TextConstraint(words=("ÜBER",)), "über", 0),
        (TextConstraint(words=("a.b",)), "axb", 1),
        (TextConstraint(words=("c++",)), "in C++ again", 0),
        (TextConstraint(pattern="the .*"), " the end ", 0),
        (TextConstraint(pattern="the"), "the end", 1),
        (TextConstraint(pattern="(?i)THE.*"), "the end", 0),
        (TextConstraint(min_words=2), "one", 1),
        (TextConstraint(min_words=2), "one two", 0),
        (TextConstraint(max_words=2), "a b\nc", 1),
        (TextConstraint(min_words=1, max_words=1), " a ", 0),
        (TextConstraint(words=("x", "y"), pattern="z", max_words=0), "a", 4),
        (TextConstraint(), "anything", 0),
        (TextConstraint(classifier=ClassifierLabel("a", "b")), "anything", 0),
    ],
)
def test_violations(constraint, text, violations):
    assert constraint.violations(text) == violations
    assert constraint.satisfied(text) == (violations == 0)


def test_missing_words_and_an_empty_constraint():
    assert TextConstraint(words=("a", "b", "c")).missing("b") == ["a", "c"]
    assert TextConstraint().is_empty and not TextConstraint(max_words=0).is_empty


@pytest.mark.parametrize(
    ("constraint", "field", "what"),
    [
        (TextConstraint(words=("",)), "words[0]", "given ''"),
        (TextConstraint(words=("a", " A ")), "words[1]", "the same as words[0]"),
        (TextConstraint(words=tuple("abcdefghi")), "words", "9 different words"),
        (TextConstraint(words=("a", "b", "c d"), max_words=3), "max_words", "4 different words"),
        (TextConstraint(min_words=3, max_words=2), "min_words", "above max_words = 2"),
        (TextConstraint(min_words=9), "min_words", "at most 8 tokens"),
        (TextConstraint(pattern="a("), "pattern", "missing ), at character 3"),
        (TextConstraint(pattern="[a"), "pattern", "not a valid regular expression"),
        (TextConstraint(pattern=r"The .*\."), "pattern", "ends in '.'"),
        (TextConstraint(words=("U.S.",)), "words[0]", "holds '.'"),
    ],
)
def test_constraints_that_no_string_can_meet(constraint, field, what):
    (problem,) = constraint.problems(lambda name: f"file, line 1, field {name}", ".", 8)
    assert problem.where == f"file, line 1, field {field}"
    assert what in problem.what and problem.allowed


@pytest.mark.parametrize(
    "constraint",
    [
        TextConstraint(words=("ice cream", "cream"), max_words=2),
        TextConstraint(min_words=8, max_words=8),
        TextConstraint(pattern=r"(a|b\.)c"),
        TextConstraint(pattern=r"a(\.)?"),
        TextConstraint(pattern=r"a[.]*"),
        TextConstraint(pattern=r"."),
        TextConstraint(pattern=r"\p{Lu}.*"),
    ],
)
def test_constraints_that_can_be_met_are_left_alone(constraint):
    assert not list(constraint.problems(str, ".", 8))


def test_a_pattern_that_takes_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr(text_constraints, "MATCH_SECONDS", 0.05)
    slow = TextConstraint(pattern=r"(a|aa|a.)+b(?:(?<=c)|d)")
    with pytest.raises(UserError, match=r"takes more than 0.05 s on 'aaaa"):
        slow.violations("a" * 200)
