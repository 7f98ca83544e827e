"""Constrained generation: prompts, lists that share nothing, and everything wrong in a file."""

from __future__ import annotations

import pytest

from gfn_runner.data.conditions import Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.synthetic import sentences
from gfn_runner.errors import UserError
from gfn_runner.rewards.text_constraints import TextConstraint
from gfn_runner.tasks.constrained import ConstrainedData, ConstrainedGeneration


def task(train=None, test=None, **options) -> ConstrainedGeneration:
    return ConstrainedGeneration(data=ConstrainedData(train=train, test=test), **options)


def test_generated_lists_are_as_many_as_asked_for_and_share_none():
    data = ConstrainedGeneration().load(0)
    assert len(data.train) == 8000 and len(data.evaluation) == 50 and not data.notes
    train = {frozenset(c.facts["constraint"].words) for c in data.train}
    test = {frozenset(c.facts["constraint"].words) for c in data.evaluation}
    assert len(train) == 8000 and len(test) == 50 and not train & test
    assert {c.group for c in data.evaluation} == {"1_words", "2_words", "3_words"}
    again, other = ConstrainedGeneration().load(0), ConstrainedGeneration().load(1)
    assert [c.key for c in again.train] == [c.key for c in data.train]
    assert [c.key for c in other.train] != [c.key for c in data.train]
    assert [c.key for c in other.evaluation] == [c.key for c in data.evaluation]


def test_more_lists_than_there_are(monkeypatch):
    slots = {slot: [slot] for slot in ("noun", "adjective", "thing", "verb", "place")}
    monkeypatch.setattr(sentences, "_SLOTS", slots)
    with pytest.raises(UserError, match="given 50, but only 25 different ones"):
        ConstrainedGeneration().load(0)


def test_the_policy_is_told_the_words_and_the_reward_is_not(file):
    path = file(
        {"words": ["fox", "river"], "max_words": 9},
        {"prompt": "A line in capitals:", "pattern": "[A-Z ]+"},
        {"words": ["map"]},
    )
    lists = task(path, file({"words": ["cup"]}, name="test.jsonl"))
    first, second, third = lists.load(0).train
    assert first.prompt == first.key == "Words: fox, river. Sentence:"
    assert first.terms == second.terms == (Term("Sentence:"),)
    assert first.facts["constraint"] == TextConstraint(words=("fox", "river"), max_words=9)
    assert second.prompt == "A line in capitals:" and third.prompt == "Words: map. Sentence:"
    groups = [c.group for c in (first, second, third)]
    assert groups == ["2_words", "no_words", "1_words"]
    assert first.facts["where"] == f"{path}, line 1, field words"
    other = ConstrainedGeneration(prompt_template="[{words}]", context="Say:").load(0).train[0]
    assert other.prompt.startswith("[") and other.terms == (Term("Say:"),)


def test_words_in_another_order_are_the_same_list(file):
    train = file({"words": ["a", "b"]}, {"words": ["a"]}, {"words": ["c"]})
    test = file({"words": ["B", "a"]}, {"words": ["c"], "max_words": 3}, name="test.jsonl")
    assert [c.prompt for c in task(train, test).load(0).train] == ["Words: a. Sentence:"]


@pytest.mark.parametrize(
    ("record", "place", "what"),
    [
        ({}, "", "asks for nothing"),
        ({"prompt": "p"}, "", "asks for nothing"),
        ({"word": ["a"], "words": ["b"]}, ", field word", "unknown field"),
        ({"words": ["a", "A"]}, ", field words[1]", "the same as words[0]"),
        ({"pattern": "a.*"}, ", field prompt", "does not tell the policy"),
        ({"classifier": {"name": "n", "label": "l"}}, ", field prompt", "does not tell the policy"),
        ({"pattern": r"a\.", "prompt": "p"}, ", field pattern", "ends in '.'"),
        ({"words": ["a"], "prompt": " "}, ", field prompt", "given ' '"),
        ({"words": ["fine"], "max_words": 2}, "", "the same prompt as line 1"),
    ],
)
def test_a_wrong_record_is_named_with_its_field(file, record, place, what):
    path = file({"words": ["fine"]}, record)
    with pytest.raises(UserError) as caught:
        task(path).load(0)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}, line 2{place}"
    assert what in problem.what and problem.allowed


def test_a_template_that_does_not_name_the_words():
    (problem,) = ConstrainedGeneration(prompt_template="Sentence:").problems()
    assert problem.where == "task.prompt_template" and "0 times" in problem.what


def test_the_posterior_of_a_typed_prompt():
    constrained = ConstrainedGeneration()
    condition = constrained.condition_for("Words: fox, ice cream. Sentence:", 0)
    assert condition.facts["constraint"].words == ("fox", "ice cream")
    assert condition.terms == (Term("Sentence:"),)
    for other in ("Words: . Sentence:", "Words: a,. Sentence:", "something else"):
        assert constrained.condition_for(other, 0) is None


def test_metrics_per_number_of_words():
    one, two = (
        ConstrainedGeneration().condition_for(f"Words: {words}. Sentence:", 0)
        for words in ("a", "a, b")
    )
    samples = [
        ConditionSamples(one, [], [" a", " A b"], [-1, -3], [-1, -1]),
        ConditionSamples(two, [], [" a", " a"], [-2, -2], [-1, -1]),
    ]
    metrics = ConstrainedGeneration().metrics(samples)
    assert metrics["satisfied_share/1_words"] == 1 and metrics["satisfied_share/2_words"] == 0
    low, high = (metrics[f"satisfied_share_{end}/1_words"] for end in ("low", "high"))
    assert 0 <= low < high == 1
