"""Tasks of texts: their settings, files and generated data, whatever the task."""

from __future__ import annotations

import json
import math

import pytest

from gfn_runner.data.conditions import Condition
from gfn_runner.data.synthetic import velan
from gfn_runner.errors import UserError
from gfn_runner.rewards.factors import Validator
from gfn_runner.runtime.targets import instantiate
from gfn_runner.tasks.base import GFlowNetModule
from gfn_runner.tasks.constrained import ConstrainedGeneration
from gfn_runner.tasks.continuation import SentenceContinuation
from gfn_runner.tasks.contrastive import Contrastive
from gfn_runner.tasks.infilling import StoryInfilling
from gfn_runner.tasks.random_number import RandomNumbers
from gfn_runner.tasks.subjectivity import Subjectivity
from gfn_runner.tasks.translation import Translation

COLUMNS = [f"sentence{number}" for number in range(1, 6)]


def prompts(n: int, first: int = 0) -> str:
    return "".join(f"prompt {number}\n" for number in range(first, first + n))


def pairs(n: int, first: int = 0) -> str:
    rows = "".join(f"s{number}\tt{number}\n" for number in range(first, first + n))
    return f"source\ttarget\n{rows}"


def story_rows(n: int, first: int = 0) -> str:
    rows = "".join(
        ",".join(f"{part}{number}." for part in "abcde") + "\n"
        for number in range(first, first + n)
    )
    return ",".join(COLUMNS) + "\n" + rows


def reviews(n: int, first: int = 0) -> str:
    rows = ({"text": f"review {k}", "label_text": "objective"} for k in range(first, first + n))
    return "".join(json.dumps(row) + "\n" for row in rows)


def word_lists(n: int, first: int = 0) -> str:
    rows = ({"words": [f"w{number}"]} for number in range(first, first + n))
    return "".join(json.dumps(row) + "\n" for row in rows)


# Task, its setting for a file, rows of a file, name of the evaluation set.
KINDS = {
    "continuation": (SentenceContinuation, "prompts", prompts, "prompts", ".txt"),
    "contrastive": (Contrastive, "prompts", prompts, "prompts", ".txt"),
    "translation": (Translation, "pairs", pairs, "sentences", ".tsv"),
    "infilling": (StoryInfilling, "stories", story_rows, "stories", ".csv"),
    "subjectivity": (Subjectivity, "train", reviews, "test", ".jsonl"),
    "constrained": (ConstrainedGeneration, "train", word_lists, "1_words", ".jsonl"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def made(Kind: type[GFlowNetModule], **options) -> GFlowNetModule:
    """A task of a config's values, as a run makes it."""
    node = {"_target_": f"{Kind.__module__}.{Kind.__qualname__}", **options}
    return instantiate("task", node, GFlowNetModule)


def keys(conditions) -> list[str]:
    return [condition.key for condition in conditions]


def problems_of(task) -> dict[str, str]:
    return {problem.where: str(problem) for problem in task.problems()}


def refused(task) -> str:
    with pytest.raises(UserError) as caught:
        task.load(0)
    return str(caught.value)


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("Kind", "options", "where"),
    [
        (SentenceContinuation, {"validator": "nowhere.at_all.judge"}, "task.validator"),
        (SentenceContinuation, {"validator": "keyword.nothing"}, "task.validator"),
        (SentenceContinuation, {"validator": "nodots"}, "task.validator"),
        (SentenceContinuation, {"validator": "keyword.kwlist"}, "task.validator"),
        (Contrastive, {"alpha": 0.0}, "task.alpha"),
        (Contrastive, {"alpha": -1.0}, "task.alpha"),
        (Contrastive, {"beta": 0.0}, "task.beta"),
        (Contrastive, {"beta": 0.5}, "task.beta"),
        (Translation, {"template": "Velan: English:"}, "task.template"),
        (StoryInfilling, {"template": "Story: {ending}"}, "task.template"),
        (StoryInfilling, {"template": "Story: {beginning}"}, "task.template"),
        (RandomNumbers, {"low": 5, "high": 5}, "task.high"),
        (RandomNumbers, {"prompt": " "}, "task.prompt"),
        (RandomNumbers, {"distribution": "binomial", "parameter": 1.0}, "task.parameter"),
        (RandomNumbers, {"distribution": "geometric", "parameter": 1.5}, "task.parameter"),
        (RandomNumbers, {"distribution": "zipf", "parameter": 1.0}, "task.parameter"),
        # Some numbers would have probability 0, …
        (RandomNumbers, {"distribution": "normal", "parameter": 0.5}, "task.parameter"),
        (RandomNumbers, {"distribution": "binomial", "parameter": 1e-9}, "task.parameter"),
        # … or all of them.
        (RandomNumbers, {"distribution": "normal", "parameter": 0.01, "high": 101}, "task.parameter"),
        (RandomNumbers, {"distribution": "poisson", "parameter": 1e6}, "task.parameter"),
        (RandomNumbers, {"min_len": 9, "eval_max_len": 9}, "task.min_len"),
        (RandomNumbers, {"min_len": 4, "max_len": 9, "eval_max_len": 3}, "task.eval_max_len"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(Kind, options, where):
    if Kind is RandomNumbers:
        options = {"max_len": 5} | options
    assert problems_of(Kind(**options)).keys() == {where}


@pytest.mark.parametrize("source", ["1 / 0\n", "def judge(text:\n"])
def test_a_validators_module_that_fails_is_a_user_error(source, tmp_path, monkeypatch):
    (tmp_path / "failing_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = problems_of(SentenceContinuation(validator="failing_module.judge")).values()
    assert "ZeroDivisionError: " in problem or "SyntaxError: " in problem


def test_a_validator_that_raises_is_a_user_error_with_the_text():
    with pytest.raises(UserError, match=r"raises ValueError: .*for the text 'a 7'"):
        Validator("builtins.int").satisfied(Condition("c", "p", ()), "a 7")


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("Kind", "name"),
    [(Contrastive, "alpha"), (Contrastive, "beta"), (RandomNumbers, "parameter"),
     (RandomNumbers, "penalty")],
)  # fmt: skip
def test_numbers_of_the_settings_are_finite_and_some_positive(Kind, name, value):
    if Kind is Contrastive and value == -1.0:
        return
    options = {"distribution": "poisson"} if Kind is RandomNumbers else {}
    with pytest.raises(UserError) as caught:
        made(Kind, **options, **{name: value})
    assert [problem.where for problem in caught.value.problems] == [f"task.{name}"]


@pytest.mark.parametrize(
    ("Kind", "options"),
    [
        *((Kind, {"data": {n: 0}}) for Kind, *_ in KINDS.values() for n in ("n_train", "n_test")),
        (RandomNumbers, {"distribution": "poisson", "parameter": 0.0}),
        (RandomNumbers, {"penalty": 0.0}),
        (SentenceContinuation, {"illegal": ("",)}),
    ],
)
def test_settings_out_of_bounds(Kind, options):
    with pytest.raises(UserError) as caught:
        made(Kind, **options)
    (problem,) = caught.value.problems
    assert problem.where.startswith("task.")


# -- files, whatever the task ----------------------------------------------------------------------


def test_some_rows_are_kept_out_where_there_is_no_test_file(kind, written):
    Kind, key, rows, group, suffix = kind
    path = written("data" + suffix, rows(20))
    data = made(Kind, data={key: path, "n_test": 5}).load(0)
    assert len(data.train) == 15 and len(data.evaluation) == 5
    assert len({*keys(data.train), *keys(data.evaluation)}) == 20
    assert {c.group for c in data.evaluation} == {group}
    assert {c.group for c in data.train} <= {"train", group}
    # Not simply the first or the last ones, and the same for every seed.
    everything = keys(
        made(Kind, data={key: path, "test": written("x" + suffix, rows(1, 99))}).load(0).train
    )
    assert keys(data.evaluation) not in (everything[:5], everything[-5:])
    again = made(Kind, data={key: path, "n_test": 5}).load(7)
    assert keys(again.evaluation) == keys(data.evaluation) and keys(again.train) == keys(data.train)


def test_at_most_half_of_a_small_file_is_kept_out(kind, written):
    Kind, key, rows, _, suffix = kind
    data = made(Kind, data={key: written("data" + suffix, rows(6)), "n_test": 50}).load(0)
    assert (len(data.train), len(data.evaluation)) == (3, 3)
    assert "two or more" in refused(made(Kind, data={key: written("one" + suffix, rows(1))}))


def test_what_is_in_the_test_file_is_not_trained_on_and_counted(kind, written):
    Kind, key, rows, group, suffix = kind
    files = {key: written("data" + suffix, rows(10)), "test": written("test" + suffix, rows(6, 7))}
    data = made(Kind, data=files).load(0)
    assert len(data.train) == 7 and len(data.evaluation) == 6
    assert not {*keys(data.train)} & {*keys(data.evaluation)}
    assert {c.group for c in data.evaluation} == {group}
    (note,) = data.notes
    assert note.startswith("3 training ") and note.endswith("dropped: in the test file")
    apart = files | {"test": written("apart" + suffix, rows(3, 50))}
    assert made(Kind, data=apart).load(0).notes == ()


def test_a_row_twice_is_named_with_both_lines(kind, written):
    Kind, key, rows, _, suffix = kind
    text = rows(3)
    text += text.splitlines()[-1] + "\n"
    last = len(text.splitlines())
    if Kind in (SentenceContinuation, Contrastive, Subjectivity):
        # Web text repeats itself.
        path = written("data" + suffix, text)
        data = made(Kind, data={key: path, "n_test": 1}).load(0)
        assert len(data.train) + len(data.evaluation) == 3
        what = "reviews" if Kind is Subjectivity else "prompts"
        assert data.notes == (f"1 repeated {what} of {path} dropped",)
        return
    message = refused(made(Kind, data={key: written("data" + suffix, text)}))
    assert f"data{suffix}, line {last}: the same " in message and f"as line {last - 1}" in message


def test_files_that_are_not_there_are_named_before_anything_is_read(kind, tmp_path, written):
    Kind, key, rows, _, suffix = kind
    found = problems_of(made(Kind, data={key: str(tmp_path / "none"), "test": str(tmp_path)}))
    assert "no such file" in found[f"task.data.{key}"] and "a folder" in found["task.data.test"]
    assert not problems_of(made(Kind, data={key: written("d" + suffix, rows(2))}))
    assert not problems_of(Kind())


def test_generated_data_are_evaluated_on_a_file(kind, written):
    Kind, _, rows, _, suffix = kind
    data = made(Kind, data={"test": written("t" + suffix, rows(5)), "n_test": 3, "n_train": 20})
    assert not problems_of(data)
    data, drawn = data.load(0), made(Kind, data={"n_train": 20, "n_test": 3}).load(0)
    assert keys(data.train) == keys(drawn.train)
    assert len(data.evaluation) == 3 and not set(keys(data.evaluation)) & set(
        keys(drawn.evaluation)
    )


def test_what_is_tested_leaves_generated_training_data(written):
    numbers = {"n_train": 20, "n_test": 3}
    drawn = made(SentenceContinuation, data=numbers).load(0)
    path = written("t.txt", f"{drawn.train[4].prompt}\nanother one\n")
    data = made(SentenceContinuation, data=numbers | {"test": path}).load(0)
    assert keys(data.train) == [key for key in keys(drawn.train) if key != drawn.train[4].key]
    assert keys(data.evaluation) == [drawn.train[4].key, "another one"]


# -- generated data, whatever the task -------------------------------------------------------------


@pytest.mark.parametrize("Kind", [SentenceContinuation, Translation, StoryInfilling])
def test_generated_data_are_as_many_as_asked_for_and_disjoint(Kind):
    task = made(Kind, data={"n_train": 30, "n_test": 8})
    data, other = task.load(0), task.load(1)
    groups = [c.group for c in data.evaluation]
    assert len(data.train) == 30 and {groups.count(group) for group in groups} == {8}
    for each in (data, other):
        assert len({*keys(each.train), *keys(each.evaluation)}) == 30 + len(groups)
    # The seed changes what is trained on and leaves what is evaluated.
    assert keys(other.evaluation) == keys(data.evaluation)
    assert keys(other.train) != keys(data.train) == keys(task.load(0).train)


def test_more_than_a_grammar_has_is_refused():
    n = math.prod(map(len, (velan.VERBS, velan.NOUNS, velan.ADJECTIVES))) * (len(velan.NOUNS) - 1)
    message = refused(made(Translation, data={"n_train": n, "n_test": 1}))
    assert f"task.data.n_train: given {n}, but only {n - 1} different ones were found" in message
    assert len(made(Translation, data={"n_train": n - 1, "n_test": 1}).load(0).train) == n - 1
    message = refused(made(StoryInfilling, data={"n_train": 10**9, "n_test": 1}))
    assert "task.data.n_train: given 1000000000" in message and "at most 1000000" in message
