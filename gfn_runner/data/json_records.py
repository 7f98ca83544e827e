"""JSON records with their places: decoded from a text, checked against the types of their fields."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from gfn_runner.data.rows import Check, Row
from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.runtime.local_paths import FOLDER

_ALLOWED = "one JSON object a line, or one list of them"
_BETWEEN_ELEMENTS = re.compile(r"[ \t\r\n,]*")


# A record's place, and the record as it was read; a problem where it could not be.
Entry = tuple[Row, Any]


def json_entries(source: str, text: str) -> list[Entry]:
    """The record of each line of a text, or of each element of the one list that it is.

    Raises:
        UserError: once, where the text as a whole is of neither form.
    """
    begins = text.lstrip()
    if begins.startswith("["):
        return _elements(source, text)
    if begins.partition("\n")[0].rstrip() == "{":
        line = text.count("\n", 0, text.index("{")) + 1
        raise UserError.one(f"{source}, line {line}", "an object over several lines", _ALLOWED)
    entries = []
    for number, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            row = Row(source, number, {})
            decoder, repeated = _decoder()
            try:
                value = decoder.decode(line_text)
            except (ValueError, RecursionError) as error:
                value = _error_problem(row.where, error, "a JSON object on one line")
            entries.append((row, _once(row, value, repeated)))
    return entries


def _elements(source: str, text: str) -> list[Entry]:
    try:
        # The whole first: what is no list is one problem, not one of each line.
        json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError([_error_problem(source + place, error, _ALLOWED)]) from error
    at = text.index("[") + 1
    found, lines, line = [], [], 1 + text.count("\n", 0, at)
    while True:
        start = _BETWEEN_ELEMENTS.match(text, at).end()  # type: ignore[union-attr]  # may be empty
        line += text.count("\n", at, start)
        if text[start] == "]":
            break
        lines.append(line)
        decoder, repeated = _decoder()
        value, at = decoder.raw_decode(text, start)
        found.append((value, repeated))
        line += text.count("\n", start, at)
    unit = "entry" if len(lines) > 1 and len(set(lines)) == 1 else "line"
    numbers = lines if unit == "line" else range(1, len(lines) + 1)
    rows = [Row(source, number, {}, unit) for number in numbers]
    return [(row, _once(row, *own)) for row, own in zip(rows, found, strict=True)]


def _decoder() -> tuple[json.JSONDecoder, list[str]]:
    """A decoder, and the names that one object has twice: JSON would take the last of them."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated.extend(name for name, n in counts.items() if n > 1)
        return found

    return json.JSONDecoder(object_pairs_hook=collect), repeated


def _once(row: Row, value: Any, repeated: list[str]) -> Any:
    if repeated and not isinstance(value, Problem):
        return Problem(row.at(repeated[0]), "given twice", "each field once")
    return value


def _error_problem(where: str, error: Exception, allowed: str) -> Problem:
    if isinstance(error, json.JSONDecodeError):
        return Problem(where, f"not JSON: {error.msg}, at column {error.colno}", allowed)
    # Thousands of digits, or deep nesting.
    return Problem(where, str(error), _ALLOWED)


def validated_rows(
    source: str,
    entries: Iterable[Entry],
    fields: Mapping[str, Any],
    optional: Sequence[str] = (),
    strict: bool = False,
    check: Check | None = None,
) -> tuple[list[Row], list[Problem]]:
    """Rows of the valid objects, and what is wrong with the others."""
    adapters = {name: TypeAdapter(kind) for name, kind in fields.items()}
    context = {FOLDER: Path(source).expanduser().parent}
    rows: list[Row] = []
    problems: list[Problem] = []
    for row, given in entries:
        if isinstance(given, Problem):
            problems.append(given)
            continue
        if not isinstance(given, dict):
            allowed = f"an object with {', '.join(fields)}"
            problems.append(Problem(row.where, f"given {_short(given)}", allowed))
            continue
        values: dict[str, Any] = {}
        unknown = [name for name in given if strict and name not in fields]
        wrong = [_unknown(row.at(name), name, list(fields)) for name in unknown]
        for name, adapter in adapters.items():
            if given.get(name) is None and name in optional:
                continue
            if name not in given:
                wrong.append(Problem(row.at(name), "missing", _kind_name(fields[name])))
                continue
            try:
                # As JSON: there, strict types know lists and objects by their form.
                text = json.dumps(given[name])
                values[name] = adapter.validate_json(text, strict=True, context=context)
            except ValidationError as error:
                wrong += [_explained(row, name, fields[name], e) for e in error.errors()]
            except (TypeError, ValueError) as error:  # a data set may hold images and dates
                wrong.append(Problem(row.at(name), str(error), _kind_name(fields[name])))
        problems += wrong
        if not wrong:
            rows.append(dataclasses.replace(row, values=values))
            problems += check(rows[-1]) if check else ()
    return rows, problems


def _unknown(where: str, name: str, known: Sequence[str]) -> Problem:
    return Problem(where, "unknown field", ", ".join(known), did_you_mean(name, known))


def _explained(row: Row, name: str, kind: Any, error: Any) -> Problem:
    """A pydantic error as a problem at its full field, ``terms[0].weight``."""
    location = list(error["loc"])
    where = row.at(name + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(where, str(location[-1]), _names_at(kind, location[:-1]))
    if error["type"] in ("missing", "missing_argument"):
        return Problem(where, "missing", f"fields: {', '.join(_names_at(kind, location[:-1]))}")
    if error["type"] == "json_invalid" and "hex escape" in error["msg"]:
        return Problem(where, "half a character (a lone surrogate)", "whole characters")
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    allowed = allowed.replace("a valid string", "a text")
    return Problem(where, f"given {_short(error['input'])}", allowed)


def _names_at(kind: Any, location: Sequence[Any]) -> list[str]:
    """Fields of the dataclass that stands at ``location`` inside a type."""
    for part in location:
        if isinstance(part, int):
            kind = get_args(kind)[0]
        elif dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind)[str(part)]
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _kind_name(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind) or ("a list" if str(kind).startswith(("list", "tuple")) else "an object")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
