"""Arithmetic questions: drawn without repetition, or read from a user's files."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from gfn_runner.data.expressions import Expression, draw_expression
from gfn_runner.data.readers import Row, read_records
from gfn_runner.data.splits import draw_distinct, first_of_each
from gfn_runner.errors import Problem

_QUESTION = re.compile(r"Question: (\d+(?: [+-] \d+)+) = \? Answer:", re.ASCII)


def parse_question(text: str) -> Expression:
    """Return the expression of a prompt; raise ``ValueError`` if the text is not such a prompt."""
    found = _QUESTION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not of the form 'Question: 1 + 2 - 3 = ? Answer:'")
    words = found.group(1).split()
    return Expression(tuple(map(int, words[::2])), tuple(words[1::2]))


def new_questions(
    entries: Sequence[tuple[Expression, str]], taken: set[str]
) -> list[tuple[Expression, str]]:
    """Return the first entry of each question that is not in ``taken``, since a question is one condition."""
    return first_of_each(entries, lambda entry: str(entry[0]), taken)


def distinct_expressions(
    rng: random.Random,
    counts: Sequence[int],
    n: int,
    *,
    held_out: bool,
    taken: Collection[str] = (),
) -> list[Expression]:
    """Draw ``n`` distinct expressions outside ``taken``, with the operand counts in equal proportions.

    Raises:
        UserError: if there are fewer than ``n``.
    """

    def draw(place: int) -> Expression:
        return draw_expression(rng, counts[place % len(counts)], held_out=held_out)

    return list(draw_distinct(draw, str, n, taken, where="task.data").values())


def read_questions(path: str | Path, *, rationale: bool = False) -> list[tuple[Expression, str]]:
    """Read questions from a JSON list of objects, a JSONL file, or a dataset on the hub.

    Args:
        path: a file or ``hub:owner/name:split``; each entry has ``str_query`` and ``num_sol``.
        rationale: whether each entry must also have ``str_rationale``.

    Returns:
        Expressions with their rationales, which are empty unless ``rationale`` is set.

    Raises:
        UserError: with file, line and field of all malformed entries.
    """
    fields = {"str_query": str, "num_sol": int} | ({"str_rationale": str} if rationale else {})
    rows = read_records(str(path), fields, allow_unknown=True, check=_row_problems, what="question")
    return [(parse_question(row["str_query"]), row.get("str_rationale", "")) for row in rows]


def _row_problems(row: Row) -> Iterator[Problem]:
    try:
        expression = parse_question(row["str_query"])
    except ValueError as error:
        yield Problem(row.at("str_query"), str(error))
        return
    if expression.value != row["num_sol"]:
        what = f"given {row['num_sol']}, but {expression} is {expression.value}"
        yield Problem(row.at("num_sol"), what)
