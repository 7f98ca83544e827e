"""Data of ``make paper-real``: the paper's own files and similar ones, from a folder named by the user.

They are copied next to the runs under fixed names, so that a run's command does not depend on their origin.
Test questions of arithmetic that occur in the training files are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from story_model import tune

from gfn_runner.data.expressions import Expression, question
from gfn_runner.data.questions import new_questions, read_questions
from gfn_runner.errors import UserError
from gfn_runner.runtime.files import write_atomically

_TOOL = "arithmetic/arithmetic_with_tool"
FILES = {
    "rationales.json": f"{_TOOL}/1digit_34_op+-_train_50.json",
    "answers.json": f"{_TOOL}/1digit_34_op+-_hw.json",
    "subjectivity_10.jsonl": "subj/train.10.jsonl",
    "subjectivity_50.jsonl": "subj/train.50.jsonl",
    "subjectivity_test.jsonl": "subj/test.jsonl",
    "prompts.txt": "openwebtext/prompts.txt",
    "stories.csv": "roc/stories.csv",
}
STORY_MODEL = "story_model"  # a folder, trained on the stories
TEST, DROPPED = "arithmetic_test.json", "arithmetic_dropped.txt"
_TESTS = [f"{_TOOL}/1digit_{n}_op+-_test.json" for n in (3, 4, 5)]


def prepare(source: Path, names: Iterable[str], folder: Path) -> None:
    """Put files into a folder.

    Args:
        source: the user's folder.
        names: some of ``FILES``, the test questions of arithmetic, or the model trained on the stories.
        folder: folder of the copies.

    Raises:
        SystemExit: in one line, if a file is missing or malformed, or the folder has a different one.
    """
    texts = {name: _read(source / FILES[name]) for name in names if name in FILES}
    if TEST in names:
        texts |= test_questions(source)
    for name, text in texts.items():
        place = folder / name
        if place.is_file() and place.read_text(encoding="utf-8") != text:
            raise SystemExit(
                f"--data {source}: another {name} than that of the runs there; give another --folder"
            )
        if not place.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(place, text)
    if STORY_MODEL in names and not (folder / STORY_MODEL).is_dir():
        print(f"{folder / STORY_MODEL}: fine-tuned on stories first", flush=True)
        try:
            tune(str(folder / "stories.csv"), folder / STORY_MODEL)
        except UserError as error:
            raise SystemExit(f"--data: {error.problems[0]}") from None


def test_questions(source: Path) -> dict[str, str]:
    """Return arithmetic's test questions that are in no training file, deduplicated, and the counts."""
    known = [_questions(source / FILES[name]) for name in ("rationales.json", "answers.json")]
    taken = {str(expression) for own in known for expression, _ in own}
    asked = [pair for path in _TESTS for pair in _questions(source / path)]
    kept = [expression for expression, _ in new_questions(asked, taken)]
    rows = [{"str_query": question(e), "num_sol": e.value} for e in kept]
    counts = [
        f"{sum(len(e.operands) == n for e, _ in new_questions(asked, set()))} at {n} operands, "
        f"{sum(len(e.operands) == n for e in kept)} left"
        for n in sorted({len(e.operands) for e, _ in asked})
    ]
    note = f"Test questions that occur in the training files are dropped: {'; '.join(counts)}."
    return {TEST: json.dumps(rows, indent=0) + "\n", DROPPED: note + "\n"}


def _questions(path: Path) -> list[tuple[Expression, str]]:
    _read(path)
    try:
        return read_questions(path)
    except UserError as error:
        raise SystemExit(f"--data: {error.problems[0]}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise SystemExit(
            f"--data: {path} cannot be read; --data FOLDER names the folder of the data"
        ) from None
