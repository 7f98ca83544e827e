"""Readers of data files on random and hostile bytes: rows, or errors that name the file and a place in it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfn_runner.data.questions import read_questions
from gfn_runner.data.readers import read_prompts, read_records, read_table, read_text
from gfn_runner.errors import UserError
from gfn_runner.tasks.user_posterior import TermRecord
from tests.budget import cases, examples
from tests.fuzz.bounded import at_most
from tests.fuzz.spoiling import spoiled

FIELDS = {"prompt": str, "terms": tuple[TermRecord, ...], "n": int, "words": list[str]}
READERS: dict[str, Callable[[str], object]] = {
    "text": read_text,
    "prompts": read_prompts,
    "table": lambda path: read_table(path, ("text", "label"), key=lambda row: row["text"]),
    "records": lambda path: read_records(path, FIELDS, optional=("n", "words")),
    "questions": lambda path: read_questions(path, rationale=True),
}
QUESTION = (
    '{"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 3, "str_rationale": "1 + 2 = 3"}'
)
GOOD = {
    "prompts.txt": b"Good\nHello there\n\nA third one \n",
    "table.csv": b'text,label\n"a, ""b""\nc",x\n,\nd,y\n',
    "table.tsv": b"id\ttext\tlabel\n1\ta\tx\n2\tb\ty\n",
    "records.jsonl": b'{"prompt": "a", "terms": [{"context": "b", "weight": 0.5}], "n": 3}\n'
    b'{"prompt": "c", "terms": [], "words": ["d"]}\n',
    "list.json": b'[\n{"prompt": "a", "terms": []},\n {"prompt": "b", "terms": []}]',
    "questions.json": f"[{QUESTION}]".encode(),
}
DEEP = 100_000
HOSTILE = {
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf",
    "a mark and a header": b"\xef\xbb\xbftext,label\na,b\n",
    "UTF-16": "text,label\na,b\n".encode("utf-16"),
    "UTF-32": "text,label\na,b\n".encode("utf-32"),
    "latin-1": "text,label\nä,b\n".encode("latin-1"),
    "half a character": b"text,label\na,\xe4\xb8",
    "an overlong form": b"\xc0\x80",
    "surrogates": b"\xed\xa0\x80",
    "NUL": b"text,label\na\0b,c\n",
    "only NUL": b"\0" * 10_000,
    "a huge line": b"a" * 3_000_000,
    "a huge cell": b"text,label\n" + b"a" * 1_000_000 + b",b\n",
    "many columns": b",".join(b"c%d" % n for n in range(20_000)) + b"\n",
    "many empty lines": b"\n" * 200_000,
    "old line ends": b"text,label\ra,b\rc,d\r",
    "mixed line ends": b"text,label\r\na,b\rc,d\n",
    "an open quote": b'text,label\n"a,b\n' + b"c,d\n" * 1_000,
    "text after a quote": b'text,label\n"a"x,b\n',
    "columns twice": b"text,label,text\na,b,c\n",
    "a column too many": b"text,label\na,b,c\n",
    "a column too few": b"text,label\na\n",
    "no columns": b"1,2\n3,4\n",
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep lists, open": b"[" * DEEP,
    "deep objects": b'{"prompt":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field": b'{"prompt": "a", "terms": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "keys twice": b'{"prompt": "a", "prompt": "b", "terms": []}',
    "keys twice inside": b'{"prompt": "a", "terms": [{"context": "b", "context": "c"}]}',
    "many keys": json.dumps({f"k{n}": n for n in range(5_000)}).encode(),
    "NaN": b'{"prompt": "a", "terms": [{"context": "b", "weight": NaN}]}',
    "infinity": b'{"prompt": "a", "terms": [{"context": "b", "weight": 1e999}]}',
    "a huge integer": b'{"prompt": "a", "terms": [], "n": ' + b"9" * 10_000 + b"}",
    "an integer": b'{"prompt": "a", "terms": [], "n": ' + b"9" * 400 + b"}",
    "a lone surrogate": b'{"prompt": "\\ud800", "terms": []}',
    "a list of nothing": b"[]",
    "a list of lists": b"[[[]], [], {}]",
    "null": b"null",
    "a number": b"3",
    "a text": b'"x"',
    "text after a list": b"[] x",
    "a cut object": b'{"prompt": "a", "ter',
    "an object over lines": b'{\n"prompt": "a"\n}',
    "commas": b"[,,,]",
    "a pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a zip": b"PK\x03\x04\x14\x00\x00\x00",
    "yaml of an object": b"!!python/object/apply:os.system ['touch pwned']\n",
    "a template": b"{{ cycler.__init__.__globals__.os.system('touch pwned') }}\n",
    "a question of another script": QUESTION.replace("1", "٣").encode(),
    "a huge question": QUESTION.replace("1", "9" * 5_000).encode(),
    "a huge wrong value": b'[{"str_query": "x", "num_sol": ' + b'"' + b"9" * 100_000 + b'"}]',
}  # fmt: skip


def outcome(name: str, path: Path, content: bytes) -> str:
    """What a reader makes of a file: ``rows`` or ``refused``; anything else is a failure of the test."""
    path.write_bytes(content)
    try:
        with at_most(10.0):
            READERS[name](str(path))
    except UserError as error:
        place = re.escape(str(path)) + r"(, (line|entry|row) \d+(, field .*)?)?"
        for problem in error.problems:
            assert re.fullmatch(place, problem.where, re.DOTALL) or problem.where == "and", problem
            assert problem.what and len(problem.what.splitlines()[0]) > 0
        assert len(error.problems) <= 21 and len(str(error)) < 60_000
        return "refused"
    finally:
        assert path.read_bytes() == content
        assert [p.name for p in path.parent.iterdir()] == [path.name]
    return "rows"


def is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    yield tmp_path / "data"


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_hostile_files(name, case, folder):
    found = outcome(name, folder / "data.csv", HOSTILE[case])
    assert found == "refused" or is_utf8(HOSTILE[case])


def test_good_files_are_read(folder):
    """Else all the refusals here would say little."""
    found = {}
    for file, content in GOOD.items():
        path = folder / file
        found[file] = [name for name in READERS if outcome(name, path, content) == "rows"]
        path.unlink()
    assert found == {
        "prompts.txt": ["text", "prompts"],
        "table.csv": ["text", "prompts", "table"],
        "table.tsv": ["text", "prompts", "table"],
        "records.jsonl": ["text", "prompts", "records"],
        "list.json": ["text", "prompts", "records"],
        "questions.json": ["text", "prompts", "questions"],
    }


@pytest.mark.parametrize("name", READERS)
def test_spoiled_files(name, folder):
    rng, found = random.Random(f"{name} {cases(1)}"), []
    for number in range(cases(150)):
        file = sorted(GOOD)[number % len(GOOD)]
        path = folder / file
        found.append(outcome(name, path, spoiled(rng, GOOD[file])))
        path.unlink()
    assert "refused" in found or name == "text"


@pytest.mark.parametrize("name", READERS)
def test_random_bytes(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "data.csv"

    @given(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")),
        )
    )
    @examples(40)
    def tried(content):
        assert outcome(name, path, content) == "refused" or is_utf8(content)

    tried()
