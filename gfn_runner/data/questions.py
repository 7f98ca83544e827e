"""Arithmetic questions: drawn without repetition, or read from a user's files."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.data.expressions import Expression, draw_expression
from gfn_runner.data.readers import read_entries
from gfn_runner.data.rows import raise_all
from gfn_runner.errors import Problem, UserError

_QUESTION = re.compile(r"Question: (\d+(?: [+-] \d+)+) = \? Answer:", re.ASCII)
_KINDS = {str: "a text", int: "a whole number"}


def parse_question(text: str) -> Expression:
    """The expression of a prompt. Raises ``ValueError`` if the text is no such prompt."""
    found = _QUESTION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not of the form 'Question: 1 + 2 - 3 = ? Answer:'")
    words = found.group(1).split()
    return Expression(tuple(map(int, words[::2])), tuple(words[1::2]))


def new_questions(
    entries: Sequence[tuple[Expression, str]], taken: set[str]
) -> list[tuple[Expression, str]]:
    """The first entry of each question that is not in ``taken``: a question is one condition."""
    found: dict[str, tuple[Expression, str]] = {}
    for expression, text in entries:
        if str(expression) not in taken:
            found.setdefault(str(expression), (expression, text))
    return list(found.values())


def distinct_expressions(
    rng: random.Random,
    counts: Sequence[int],
    n: int,
    *,
    held_out: bool,
    taken: set[str] | None = None,
) -> list[Expression]:
    """``n`` different expressions, none in ``taken``, with numbers of operands in equal shares."""
    found: dict[str, Expression] = {}
    tries = 0
    while len(found) < n:
        expression = draw_expression(rng, counts[len(found) % len(counts)], held_out=held_out)
        if str(expression) not in (taken or ()):
            found.setdefault(str(expression), expression)
        tries += 1
        if tries > 200 * n + 10_000:
            raise UserError.one(
                "task.data",
                f"found only {len(found)} different questions with {list(counts)} operands",
                f"at most {len(found)} of them",
            )
    return list(found.values())


def read_questions(path: str | Path, *, rationale: bool = False) -> list[tuple[Expression, str]]:
    """Read questions: a JSON list of objects, one object a line, or a data set.

    Args:
        path: a file or ``hub:owner/name:split``; each entry has ``str_query`` and ``num_sol``.
        rationale: whether each entry must have ``str_rationale`` too.

    Returns:
        Expressions with their rationale (empty if none was asked for).

    Raises:
        UserError: naming file, line and field, for all malformed entries at once.
    """
    problems: list[Problem] = []
    questions = []
    for row in read_entries(str(path)):
        where, entry = f"{path}, {row.unit} {row.number}", row.value
        if isinstance(entry, Problem):
            problems.append(entry)
            continue
        wanted = {"str_query": str, "num_sol": int} | ({"str_rationale": str} if rationale else {})
        wrong = list(_field_problems(entry, wanted, where))
        if not wrong:
            try:
                expression = parse_question(entry["str_query"])
            except ValueError as error:
                wrong.append(Problem(f"{where}, field str_query", str(error)))
            else:
                if expression.value != entry["num_sol"]:
                    wrong.append(
                        Problem(
                            f"{where}, field num_sol",
                            f"given {entry['num_sol']}, but {expression} is {expression.value}",
                        )
                    )
                questions.append((expression, entry.get("str_rationale", "")))
        problems += wrong
    raise_all(problems)
    if not questions:
        raise UserError.one(str(path), "no question in it", "a list of at least one object")
    return questions


def _field_problems(entry: Any, wanted: dict[str, type], where: str) -> Iterator[Problem]:
    if not isinstance(entry, dict):
        yield Problem(where, f"an entry is {entry!r}", f"an object with {', '.join(wanted)}")
        return
    for field, kind in wanted.items():
        value = entry.get(field)
        if field not in entry:
            yield Problem(f"{where}, field {field}", "missing", _KINDS[kind])
        elif not isinstance(value, kind) or isinstance(value, bool):
            yield Problem(f"{where}, field {field}", f"given {value!r}", _KINDS[kind])
