"""JSON objects of a text, one a line or all in one list, each with its place; knows no field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gfn_runner.errors import Problem, UserError

_ALLOWED = "one JSON object a line, or one list of them"


@dataclass(frozen=True)
class Entry:
    """One entry.

    Attributes:
        unit: what ``number`` counts: ``line``; or ``entry`` of a list that is all on one line.
        number: from 1.
        value: as it was read; a problem where it could not be.
    """

    unit: str
    number: int
    value: Any


class _TwiceError(ValueError):
    """A field stands twice in one object, and JSON would take the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _TwiceError(name)
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def json_entries(source: str, text: str) -> list[Entry]:
    """What each line of a text holds, or each element of the one list that it is.

    Args:
        source: the file, for messages.
        text: all of it.

    Raises:
        UserError: once, where the text as a whole is of neither form.
    """
    begins = text.lstrip()
    if begins.startswith("["):
        return _elements(source, text)
    if begins.partition("\n")[0].rstrip() == "{":
        line = text.count("\n", 0, text.index("{")) + 1
        raise UserError.one(f"{source}, line {line}", "an object over several lines", _ALLOWED)
    return [
        Entry("line", number, _decoded(line, f"{source}, line {number}"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]


def _decoded(line: str, where: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}, at column {error.colno}"
        return Problem(where, reason, "a JSON object on one line")
    except (ValueError, RecursionError) as error:  # thousands of digits, deep nesting
        return _unreadable(where, error)


def _unreadable(where: str, error: Exception) -> Problem:
    if isinstance(error, _TwiceError):
        return Problem(f"{where}, field {error}", "given twice", "each field once")
    return Problem(where, str(error), _ALLOWED)


def _elements(source: str, text: str) -> list[Entry]:
    try:
        # The whole first: what is no list is one mistake, not one of each line.
        json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg}, at column {error.colno}"
        raise UserError.one(f"{source}, line {error.lineno}", reason, _ALLOWED) from error
    except (ValueError, RecursionError) as error:
        raise UserError([_unreadable(source, error)]) from error
    spans = list(_spans(text))
    lines = _lines_at(text, [start for start, _ in spans])
    unit, numbers = "line", lines
    if len(lines) > 1 and len(set(lines)) == 1:
        unit, numbers = "entry", list(range(1, len(lines) + 1))
    return [
        Entry(unit, number, _element(text[start:end], f"{source}, {unit} {number}"))
        for number, (start, end) in zip(numbers, spans, strict=True)
    ]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each element of a well-formed list begins and ends."""
    plain, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at] in " \t\r\n,":
            at += 1
        if text[at] == "]":
            return
        start = at
        _, at = plain.raw_decode(text, at)
        yield start, at


def _lines_at(text: str, places: Sequence[int]) -> list[int]:
    lines, line, before = [], 1, 0
    for place in places:
        line, before = line + text.count("\n", before, place), place
        lines.append(line)
    return lines


def _element(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except ValueError as error:
        return _unreadable(where, error)
