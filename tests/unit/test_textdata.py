"""Readers of a user's files: what they give, and every way in which a file can be wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import SimpleNamespace
from typing import Annotated

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as record

from gfn_runner.data.hub import parse_source
from gfn_runner.data.readers import path_problems, read_prompts, read_records, read_table
from gfn_runner.errors import Problem, UserError


@record(frozen=True, config=ConfigDict(extra="forbid"))
class Part:
    context: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


FIELDS = {"prompt": str, "terms": tuple[Part, ...], "words": list[str], "n": int}
OPTIONAL = ("words", "n")


@pytest.fixture
def written(written):
    return lambda content, name="data.txt": written(name, content)


def problems_of(read, *arguments, **options) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    return caught.value.problems


def places(problems: list[Problem]) -> list[str]:
    return [problem.where.partition("data.txt, ")[2] for problem in problems]


def records(path: str, **options):
    return read_records(path, FIELDS, optional=OPTIONAL, **options)


READERS = {
    "prompts": read_prompts,
    "table": lambda path: read_table(path, ("text",)),
    "records": records,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_files_that_cannot_be_read(read, written, tmp_path):
    (problem,) = problems_of(read, str(tmp_path / "none.txt"))
    assert problem.where == str(tmp_path / "none.txt") and problem.what == "no such file"
    (problem,) = problems_of(read, str(tmp_path))
    assert problem.what == "a folder"
    (problem,) = problems_of(read, "a\0b")
    assert "cannot be read" in problem.what
    for empty in ("", "\n \n\n", "\ufeff"):
        (problem,) = problems_of(read, written(empty))
        assert " in it" in problem.what or "no column" in problem.what


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_every_line_that_is_not_utf8_is_named(read, written):
    found = problems_of(read, written(b"text\n\xff\nfine\n\xe4h\n"))
    assert places(found) == ["line 2", "line 4"]
    assert all("not UTF-8" in p.what for p in found)


def test_of_very_many_mistakes_the_first_are_shown_and_the_rest_counted(written):
    found = problems_of(records, written("3\n" * 1000))
    assert len(found) == 21 and "980 more" in found[-1].what


def test_paths_of_a_config(written, tmp_path, monkeypatch):
    assert not list(path_problems("task.data.train", written("a")))
    (problem,) = path_problems("task.data.train", str(tmp_path))
    assert problem.where == "task.data.train" and "a folder" in problem.what
    (problem,) = path_problems("task.data.train", "none.txt")
    assert "no such file" in problem.what
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    first, second = path_problems("task.data.train", "hub:owner/name")
    assert "split" in first.what and "gfn-runner[hub-data]" in second.fix


def test_lines_may_end_in_carriage_returns_alone(written):
    assert [r["prompt"] for r in read_prompts(written("one\rtwo\r"))] == ["one", "two"]
    table = written("text,n\rone,1\rtwo,2\r")
    assert [(r.line, r["text"]) for r in read_table(table, ("text",))] == [(2, "one"), (3, "two")]
    lines = written('{"prompt": "a", "terms": []}\r{"prompt": "b", "terms": []}')
    assert [r["prompt"] for r in records(lines)] == ["a", "b"]
    assert places(problems_of(read_prompts, written(b"one\r\xff\r"))) == ["line 2"]


def test_prompts(written):
    rows = read_prompts(written("\ufeffone  \r\n\r\n  two\t\n\u2028three"))
    assert [(r.line, r["prompt"]) for r in rows] == [(1, "one"), (3, "  two"), (4, "\u2028three")]
    assert rows[1].where.endswith("data.txt, line 3")
    assert rows[1].at("prompt").endswith("data.txt, line 3, field prompt")


def test_a_prompt_that_occurs_twice(written):
    path = written("a\nb\na \nb\n")
    found = problems_of(read_prompts, path)
    assert places(found) == ["line 3", "line 4"]
    assert found[0].what == "the same prompt as line 1"
    assert len(read_prompts(path, unique=False)) == 4


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'id,text, label \n1,"a, ""b""\nc",x\n\n2, d ,\n', [(2, 'a, "b"\nc'), (5, "d")]),
        # Without quoting.
        ("a.tsv", 'label\ttext\n1\t"so" he said\n0\t"\n', [(2, '"so" he said'), (3, '"')]),
    ],
)
def test_a_table(name, content, expected, written):
    rows = read_table(written(content, name), ("text",))
    assert [(row.line, dict(row.values)) for row in rows] == [
        (line, {"text": text}) for line, text in expected
    ]


def test_all_mistakes_of_a_table(written):
    path = written("text,label\na,1\n,2\nb\nc,1,2\n d ,\na,7\n")
    found = problems_of(read_table, path, ("text", "label"), key=lambda row: row["text"])
    expected = ["line 3, field text", "line 4", "line 5", "line 6, field label", "line 7"]
    assert places(found) == expected
    assert found[1].what == "1 cells" and "2, one for each of text, label" in found[1].allowed
    assert "quotes" in found[2].fix and "the same row as line 2" in found[4].what


def test_columns_that_are_missing_or_there_twice(written):
    path = written("txt,a,a\n1,2,3\n")
    first, second, third = problems_of(read_table, path, ("text", "zzz"))
    assert first.what == "no column text" and first.fix == "rename txt to text"
    assert second.what == "no column zzz" and second.allowed == "columns: txt, a, a"
    assert third.what == "two columns are called a"


def test_a_table_of_a_header_only_and_a_quote_that_never_ends(written):
    (problem,) = problems_of(read_table, written("text\n"), ("text",), what="story")
    assert problem.what == "no story in it"
    open_quote = written('text\nfine\n"open\nstill\n')
    assert places(problems_of(read_table, open_quote, ("text",))) == ["line 3"]


def test_records(written):
    path = written(
        '{"prompt": "a", "terms": [{"context": "x", "weight": 2}, {"context": "y"}], "n": null}\r\n'
        '\n{"prompt": "b", "terms": [], "words": ["w"]}'
    )
    first, second = records(path)
    assert first["terms"] == (Part("x", 2.0), Part("y")) and first.get("n") is None
    assert second.line == 3 and second["words"] == ["w"]


@pytest.mark.parametrize(
    ("line", "field", "what"),
    [
        ('{"terms": []}', ", field prompt", "missing"),
        ('{"prompt": 3, "terms": []}', ", field prompt", "given 3"),
        ('{"prompt": null, "terms": []}', ", field prompt", "given None"),
        ('{"prompt": "a", "terms": [], "n": true}', ", field n", "given True"),
        ('{"prompt": "a", "terms": [], "n": "1"}', ", field n", "given '1'"),
        ('{"prompt": "a", "terms": [], "words": "w"}', ", field words", "given 'w'"),
        ('{"prompt": "a", "terms": [], "words": ["w", 1]}', ", field words[1]", "given 1"),
        ('{"prompt": "a", "terms": [{}]}', ", field terms[0].context", "missing"),
        ('{"prompt": "a", "terms": [{"context": "x", "w": 1}]}', ", field terms[0].w", "unknown"),
        ('{"prompt": "a", "terms": [], "wrds": []}', ", field wrds", "unknown field"),
        ('{"prompt": "a", "prompt": "b", "terms": []}', ", field prompt", "given twice"),
        ('{"prompt": "\\ud800", "terms": []}', "", "half a character"),
        ('{"prompt": "a", "terms": [{"context": "x", "weight": NaN}]}', ", field terms[0].weight", "given nan"),
        ('{"prompt": "a", "terms": [{"context": "x", "weight": 1e999}]}', ", field terms[0].weight", "given inf"),
        ("[1]", "", "given [1]"),
        ("{", "", "not JSON"),
        ("9" * 5000, "", "digits"),
        ("[" * 100_000, "", "recursion"),
    ],
)  # fmt: skip
def test_a_record_that_is_wrong_is_named_with_line_and_field(written, line, field, what):
    path = written('{"prompt": "fine", "terms": []}\n' + line + "\n")
    (problem,) = problems_of(records, path)
    assert problem.where == f"{path}, line 2{field}"
    assert what in problem.what and problem.allowed
    assert len(str(problem)) < 500


def test_one_list_of_records(written):
    good = [{"prompt": "a ] , [ b", "terms": []}, {"prompt": "c", "terms": []}]
    assert [r["prompt"] for r in records(written(json.dumps(good)))] == ["a ] , [ b", "c"]
    rows = records(written("\n" + json.dumps(good, indent=1)))
    assert [(r.line, r["prompt"]) for r in rows] == [(3, "a ] , [ b"), (7, "c")]
    twice = '{"prompt": "b", "prompt": "b", "terms": []}'
    one_line = f'[{{"prompt": "a", "terms": []}}, 3, {twice}, {{"prompt": "a", "terms": []}}]'
    found = problems_of(records, written(one_line), key=lambda row: row["prompt"], what="prompt")
    assert places(found) == ["entry 2", "entry 3, field prompt", "entry 4"]
    assert found[-1].what == "the same prompt as entry 1"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('[\n{"prompt": "a", "terms": []}\n{"prompt": "b", "terms": []}]', 3, "not JSON"),
        ('\n{\n"prompt": "a",\n"terms": []\n}\n', 2, "an object over several lines"),
        ("[" * 100_000, 0, "recursion"),
    ],
)
def test_a_file_of_another_form_is_one_mistake(written, text, line, what):
    path = written(text)
    (problem,) = problems_of(records, path)
    assert problem.where == (f"{path}, line {line}" if line else path)
    assert what in problem.what and "one list" in problem.allowed


def test_all_mistakes_of_all_lines_and_duplicates_at_once(written):
    good, misspelt = '{"prompt": "a", "terms": []}', '{"promt": "a", "terms": []}'
    path = written(f'{good}\n{misspelt}\nx\n{good}\n{{"prompt": 1, "terms": 2}}')
    found = problems_of(records, path, key=lambda row: row["prompt"], what="prompt")
    assert places(found) == [
        "line 2, field prompt", "line 2, field promt", "line 3",
        "line 5, field prompt", "line 5, field terms", "line 4",
    ]  # fmt: skip
    assert found[0].what == "missing"
    assert found[1].fix == "did you mean prompt?" and found[1].allowed == "prompt, terms, words, n"
    assert found[-1].what == "the same prompt as line 1"


@pytest.fixture
def hub(monkeypatch):
    """A library ``datasets`` with one data set."""
    rows = [
        {"prompt": "a ", "text": "t", "terms": [{"context": "x", "weight": None}], "n": None},
        {"prompt": "b", "text": "u", "terms": [], "n": 2},
    ]
    asked = []

    def load_dataset(name, subset, *, split):
        asked.append((name, subset, split))
        if split != "train" and not split.startswith("train["):
            raise ValueError(f"Unknown split {split!r}\nmore")
        return rows

    module = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module)
    return SimpleNamespace(rows=rows, asked=asked)


@pytest.mark.parametrize("path", ["hub:", "hub:o/n", "hub:o/n:", "hub:a/b/c/d:train", "hub::train"])
def test_what_is_no_name_of_a_data_set(path):
    (problem,) = problems_of(parse_source, path)
    assert problem.where == path and "hub:owner/name:split" in problem.allowed


def test_rows_of_a_data_set_are_read_like_a_file(hub):
    rows = read_prompts("hub:o/n:train")
    assert [(r.line, r["prompt"]) for r in rows] == [(1, "a"), (2, "b")]
    assert rows[1].where == "hub:o/n:train, row 2"
    assert [r["prompt"] for r in read_prompts("hub:o/n/s:train[:2]:text")] == ["t", "u"]
    assert hub.asked[-1] == ("o/n", "s", "train[:2]")
    first, second = records("hub:o/n:train")
    assert first["terms"] == (Part("x"),) and first.get("n") is None and second["n"] == 2
    table = read_table("hub:o/n:train", ("prompt",))
    assert [dict(r.values) for r in table] == [{"prompt": "a"}, {"prompt": "b"}]


def test_what_can_be_wrong_with_a_data_set(hub):
    (problem,) = problems_of(read_prompts, "hub:o/n:dev")
    assert "Unknown split 'dev'" in problem.what and "more" not in problem.what
    first, _ = problems_of(read_prompts, "hub:o/n:train:nothing")
    assert first.where == "hub:o/n:train:nothing, row 1, field nothing"
    (problem,) = problems_of(records, "hub:o/n:train:text")
    assert "names the column text" in problem.what
    hub.rows[1] = {"prompt": "a", "terms": [{"context": object()}]}
    (problem,) = problems_of(records, "hub:o/n:train")
    assert problem.where == "hub:o/n:train, row 2" and "not JSON serializable" in problem.what
    hub.rows[:] = [{"prompt": " "}]
    (problem,) = problems_of(read_table, "hub:o/n:train", ("prompt",))
    assert problem.what == "empty"
