"""Tasks of texts: their settings, files and generated data, whatever the task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

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

STORY_HEADER = "sentence1,sentence2,sentence3,sentence4,sentence5\n"
REVIEW = '{"text": "review #", "label_text": "objective"}'


class FileKind(NamedTuple):
    task: type[GFlowNetModule]
    key: str  # its setting for a file
    suffix: str
    group: str  # name of the evaluation set
    row: str
    header: str = ""

    def text(self, numbers: Iterable[int]) -> str:
        """A file whose rows have these numbers."""
        return self.header + "".join(self.row.replace("#", str(n)) + "\n" for n in numbers)


KINDS = {
    "continuation": FileKind(SentenceContinuation, "prompts", ".txt", "prompts", "prompt #"),
    "contrastive": FileKind(Contrastive, "prompts", ".txt", "prompts", "prompt #"),
    "translation": FileKind(Translation, "pairs", ".tsv", "sentences", "s#\tt#", "source\ttarget\n"),
    "infilling": FileKind(StoryInfilling, "stories", ".csv", "stories", "a#.,b#.,c#.,d#.,e#.", STORY_HEADER),
    "subjectivity": FileKind(Subjectivity, "train", ".jsonl", "test", REVIEW),
    "constrained": FileKind(ConstrainedGeneration, "train", ".jsonl", "1_words", '{"words": ["w#"]}'),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def of_files(kind, written):
    """Makes a task of files whose rows have these numbers; without a file, of generated data."""

    def make(train: Iterable[int] = (), test: Iterable[int] = (), **options) -> GFlowNetModule:
        for name, numbers in ((kind.key, train), ("test", test)):
            if numbers:
                options[name] = written(name + kind.suffix, kind.text(numbers))
        return made(kind.task, data=options)

    return make


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


NOT_FINITE = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
    ("Kind", "name", "value"),
    [
        *((Contrastive, name, n) for name in ("alpha", "beta") for n in NOT_FINITE),
        *((RandomNumbers, "parameter", n) for n in (-1.0, 0.0, *NOT_FINITE)),
        *((RandomNumbers, "penalty", n) for n in (-1.0, 0.0, *NOT_FINITE)),
        *((kind.task, "data", {n: 0}) for kind in KINDS.values() for n in ("n_train", "n_test")),
        (SentenceContinuation, "illegal", ("",)),
    ],
)
def test_settings_out_of_bounds(Kind, name, value):
    with pytest.raises(UserError) as caught:
        made(Kind, **{name: value})
    (problem,) = caught.value.problems
    assert problem.where.startswith(f"task.{name}")


# -- files, whatever the task ----------------------------------------------------------------------


def test_some_rows_are_kept_out_where_there_is_no_test_file(kind, of_files):
    data = of_files(range(20), n_test=5).load(0)
    assert len(data.train) == 15 and len(data.evaluation) == 5
    assert len({*keys(data.train), *keys(data.evaluation)}) == 20
    assert {c.group for c in data.evaluation} == {kind.group}
    assert {c.group for c in data.train} <= {"train", kind.group}
    # Not simply the first or the last ones, and the same for every seed.
    everything = keys(of_files(range(20), [99]).load(0).train)
    assert keys(data.evaluation) not in (everything[:5], everything[-5:])
    again = of_files(range(20), n_test=5).load(7)
    assert keys(again.evaluation) == keys(data.evaluation) and keys(again.train) == keys(data.train)


def test_at_most_half_of_a_small_file_is_kept_out(of_files):
    data = of_files(range(6), n_test=50).load(0)
    assert (len(data.train), len(data.evaluation)) == (3, 3)
    assert "two or more" in refused(of_files([0]))


def test_what_is_in_the_test_file_is_not_trained_on_and_counted(kind, of_files):
    data = of_files(range(10), range(7, 13)).load(0)
    assert len(data.train) == 7 and len(data.evaluation) == 6
    assert not {*keys(data.train)} & {*keys(data.evaluation)}
    assert {c.group for c in data.evaluation} == {kind.group}
    (note,) = data.notes
    assert note.startswith("3 training ") and note.endswith("dropped: in the test file")
    assert of_files(range(10), range(50, 53)).load(0).notes == ()


def test_a_row_twice_is_named_with_both_lines(kind, of_files):
    numbers = [0, 1, 2, 2]
    task = of_files(numbers, n_test=1)
    if kind.task in (SentenceContinuation, Contrastive, Subjectivity):
        # Web text repeats itself.
        data = task.load(0)
        assert len(data.train) + len(data.evaluation) == 3
        (note,) = data.notes
        assert note.startswith("1 repeated ") and note.endswith(f"{kind.key}{kind.suffix} dropped")
        return
    last = len(kind.text(numbers).splitlines())
    assert f"{kind.key}{kind.suffix}, line {last}: the same " in (message := refused(task))
    assert f"as line {last - 1}" in message


def test_files_that_are_not_there_are_named_before_anything_is_read(kind, of_files, tmp_path):
    paths = {kind.key: str(tmp_path / "none"), "test": str(tmp_path)}
    found = problems_of(made(kind.task, data=paths))
    assert "no such file" in found[f"task.data.{kind.key}"]
    assert "a folder" in found["task.data.test"]
    assert not problems_of(of_files(range(2))) and not problems_of(kind.task())


def test_generated_data_are_evaluated_on_a_file(of_files):
    numbers = {"n_train": 20, "n_test": 3}
    task = of_files(test=range(5), **numbers)
    assert not problems_of(task)
    data, drawn = task.load(0), of_files(**numbers).load(0)
    assert keys(data.train) == keys(drawn.train) and len(data.evaluation) == 3
    assert not set(keys(data.evaluation)) & set(keys(drawn.evaluation))


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
