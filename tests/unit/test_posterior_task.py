"""The user's own posterior: what a file becomes, and everything that can be wrong in one."""

from __future__ import annotations

from importlib.resources import files

import pytest

from gfn_runner.data.conditions import Term
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.metrics.accuracy import with_interval
from gfn_runner.rewards.text_constraints import TextConstraint
from gfn_runner.tasks.user_posterior import EXAMPLE, PosteriorData, UserPosterior

GOOD = {"prompt": "a", "terms": [{"context": "c"}]}


def task(train: str | None, evaluation: str | None = None, held_out: float = 0.0, **options):
    data = PosteriorData(train=train, evaluation=evaluation, held_out=held_out)
    return UserPosterior(data=data, **options)


def problems(train: str, **options):
    with pytest.raises(UserError) as caught:
        task(train, **options).load(0)
    return caught.value.problems


def test_a_line_becomes_a_condition(file):
    path = file(
        {
            "prompt": "p",
            "terms": [{"context": "c", "suffix": " s.", "weight": -0.5}, {"context": "d"}],
            "constraint": {"words": ["w"], "classifier": {"name": "n", "label": "l"}},
            "demonstrations": [" a w"],
        },
        {"prompt": "q", "constraint": {"max_words": 3}},
    )
    data = task(path).load(0)
    first, second = data.train
    assert first.terms == (Term("c", " s.", -0.5), Term("d", "", 1.0))
    assert first.demonstrations == (" a w",) and first.key == first.prompt == "p"
    constraint = first.facts["constraint"]
    assert constraint.words == ("w",) and constraint.classifier.label == "l"
    assert first.facts["where"] == f"{path}, line 1, field constraint"
    # Without terms: the language model's own continuation of the prompt.
    assert second.terms == (Term("q"),)
    assert second.facts["constraint"] == TextConstraint(max_words=3)
    assert [c.group for c in data.evaluation] == ["seen", "seen"]


def test_the_example_is_in_the_package_and_can_be_read():
    assert files("gfn_runner").joinpath("tasks/examples/posterior.jsonl").is_file()
    data = UserPosterior(max_len=20, eval_max_len=20).load(0)
    assert len(data.train) == len(EXAMPLE.read_text().splitlines()) == len(data.evaluation) >= 5
    assert len({len(c.terms) for c in data.train}) > 1
    assert not list(UserPosterior().problems())


def test_held_out_and_a_file_of_its_own(file):
    path = file(*({"prompt": str(n), "terms": [{"context": "c"}]} for n in range(10)))
    data = task(path, held_out=0.3).load(0)
    assert len(data.train) == 7 and len(data.evaluation) == 3
    assert not {c.key for c in data.train} & {c.key for c in data.evaluation}
    assert {c.group for c in data.evaluation} == {"unseen"}
    assert [c.key for c in task(path, held_out=0.3).load(0).train] == [c.key for c in data.train]
    other = file({"prompt": "3", "terms": [{"context": "c"}]}, {**GOOD, "prompt": "x"}, name="e")
    assert [c.group for c in task(path, evaluation=other).load(0).evaluation] == ["seen", "unseen"]
    with pytest.raises(UserError, match="one row"):
        task(file(GOOD), held_out=0.5).load(0)


@pytest.mark.parametrize(
    ("change", "field", "what"),
    [
        ({"prompt": "  "}, "prompt", "given '  '"),
        ({"prompt": None}, "prompt", "missing"),
        ({"terms": []}, "terms", "no constraint either"),
        ({"terms": [{"context": "c", "weight": 0}]}, "terms", "every weight is 0"),
        ({"terms": [{"context": "c", "weight": float("nan")}]}, "terms[0].weight", "given nan"),
        ({"terms": [{"context": "c", "sufix": ""}]}, "terms[0].sufix", "unknown field"),
        ({"constraint": {}}, "constraint", "asks for nothing"),
        ({"constraint": {"word": ["a"]}}, "constraint.word", "unknown field"),
        ({"constraint": {"words": [""]}}, "constraint.words[0]", "given ''"),
        ({"constraint": {"min_words": 31}}, "constraint.min_words", "at most 30 tokens"),
        ({"constraint": {"pattern": "("}}, "constraint.pattern", "not a valid regular expression"),
        ({"constraint": {"classifier": {"name": "n"}}}, "constraint.classifier.label", "missing"),
        ({"demonstrations": [" "]}, "demonstrations[0]", "given ' '"),
        ({"constraint": {"words": ["w"]}, "demonstrations": [" w", " v"]}, "demonstrations[1]",
         "does not meet the constraint"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_its_field(file, change, field, what):
    path = file({**GOOD, "prompt": "fine"}, {**GOOD, **change})
    (problem,) = problems(path)
    assert problem.where == f"{path}, line 2, field {field}"
    assert what in problem.what and problem.allowed


def test_all_mistakes_of_a_file_at_once(file):
    path = file(GOOD, {**GOOD, "prompt": "b", "terms": 1}, "{", GOOD)
    found = [p.where.removeprefix(f"{path}, ") for p in problems(path)]
    assert found == ["line 2, field terms", "line 3", "line 4"]
    impossible = {**GOOD, "constraint": {"min_words": 3, "max_words": 2, "pattern": "["}}
    path = file({**GOOD, "prompt": " "}, impossible)
    assert len(problems(path)) == 3


def test_one_prompt_has_one_posterior(file):
    other = {"prompt": "a", "terms": [{"context": "d"}]}
    (problem,) = problems(file(GOOD, other))
    assert problem.what == "the same prompt as line 1"
    evaluation = file(other, name="other")
    (problem,) = problems(file(GOOD), evaluation=evaluation)
    assert problem.where == f"{evaluation}, line 1, field prompt"
    assert "another posterior" in problem.what


def test_settings_that_cannot_be(file):
    path = file(GOOD)
    for arguments, key in (
        ({"train": "none.jsonl"}, "data.train"),
        ({"train": None, "evaluation": "none.jsonl"}, "data.evaluation"),
        ({"train": path, "evaluation": path, "held_out": 0.1}, "data.held_out"),
        ({"train": "hub:nothing"}, "data.train"),
        ({"train": path, "min_len": 40}, "min_len"),
    ):
        assert {problem.where for problem in task(**arguments).problems()} == {f"task.{key}"}


def test_metrics(file):
    path = file({**GOOD, "constraint": {"words": ["w"]}}, {**GOOD, "prompt": "b"})
    first, second = task(path).load(0).evaluation
    samples = [
        ConditionSamples(first, [], [" a w", " a w ", " v", "w"], [-1, -2, -3, -4], [-2] * 4),
        ConditionSamples(second, [], ["x", "y"], [-5, -3], [-1, -3]),
    ]
    metrics = UserPosterior().metrics(samples)
    # Only the condition that has a constraint is a trial, and three quarters of it a success.
    assert metrics["satisfied_share/seen"] == 0.75
    low, high = (metrics[f"satisfied_share_{end}/seen"] for end in ("low", "high"))
    assert (low, high) == pytest.approx([*with_interval("", 0.75, 1).values()][1:])
    assert low < 0.75 < high < 1
    assert "label_probability/seen" not in metrics
    assert UserPosterior().metrics([]) == {}
    assert "satisfied_share/seen" not in UserPosterior().metrics(samples[1:])
