"""JSON records with their location: decoding and validation against field types."""

from __future__ import annotations

import dataclasses
import json
import re
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from gfn_runner.data.rows import Check, Row
from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.runtime.local_paths import FOLDER

_ALLOWED = "one JSON object per line, or one list of them"
_BETWEEN_ELEMENTS = re.compile(r"[ \t\r\n,]*")


# A record's location, and the decoded record or the problem that prevented decoding it.
Entry = tuple[Row, Any]


def json_entries(source: str, text: str) -> list[Entry]:
    """Decode the record on each line of a text, or each element if the text is a single JSON list.

    Raises:
        UserError: once for the whole text, if it has neither form.
    """
    begins = text.lstrip()
    if begins.startswith("["):
        parts = _elements(source, text)
    elif begins.partition("\n")[0].rstrip() == "{":
        line = text.count("\n", 0, text.index("{")) + 1
        raise UserError.one(f"{source}, line {line}", "an object over several lines", _ALLOWED)
    else:
        lines = enumerate(text.split("\n"), start=1)
        parts = [(Row(source, number, {}), line) for number, line in lines if line.strip()]
    return [(row, _decoded(row, part)) for row, part in parts]


def _elements(source: str, text: str) -> list[tuple[Row, str]]:
    """Split a JSON list into elements, each with its first line, or its index if all are on one line."""
    try:
        # Parse the whole text first: an invalid list is one problem, not one per line.
        json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError([_error_problem(source + place, error, _ALLOWED)]) from error
    line_ends = [found.start() for found in re.finditer("\n", text)]
    at, lines, parts = text.index("[") + 1, [], []
    while True:
        start = _BETWEEN_ELEMENTS.match(text, at).end()  # type: ignore[union-attr]  # may be empty
        if text[start] == "]":
            break
        _, at = json.JSONDecoder().raw_decode(text, start)
        lines.append(1 + bisect(line_ends, start))
        parts.append(text[start:at])
    unit = "entry" if len(lines) > 1 and len(set(lines)) == 1 else "line"
    numbers = lines if unit == "line" else range(1, len(lines) + 1)
    return [(Row(source, n, {}, unit), part) for n, part in zip(numbers, parts, strict=True)]


def _decoded(row: Row, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except KeyError as error:
        return Problem(row.at(error.args[0]), "given twice", "each field once")
    except (ValueError, RecursionError) as error:
        return _error_problem(row.where, error, "a JSON object on one line")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; raise ``KeyError`` on a repeated field, of which ``json`` would keep the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise KeyError(name)
        found[name] = value
    return found


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
    """Return the rows of the valid objects, and the problems of the others."""
    columns = {n: NotRequired[k | None] if n in optional else k for n, k in fields.items()}
    make: Any = TypedDict  # mypy supports it with literal names only
    record = make("record", columns)
    record.__pydantic_config__ = ConfigDict(extra="forbid" if strict else "ignore")
    adapter = TypeAdapter(record)
    context = {FOLDER: Path(source).expanduser().parent}
    rows: list[Row] = []
    problems: list[Problem] = []
    for row, given in entries:
        if isinstance(given, Problem):
            problems.append(given)
            continue
        try:
            # Validate as JSON: strict mode accepts JSON lists and objects there, e.g. for tuples.
            values = adapter.validate_json(json.dumps(given), strict=True, context=context)
        except ValidationError as error:
            problems += [_explained(row, fields, e) for e in error.errors()]
        except (TypeError, ValueError) as error:  # a dataset may hold images and dates
            problems.append(Problem(row.where, str(error), f"an object with {', '.join(fields)}"))
        else:
            given = {name: value for name, value in values.items() if value is not None}
            rows.append(dataclasses.replace(row, values=given))
            problems += check(rows[-1]) if check else ()
    return rows, problems


def _explained(row: Row, fields: Mapping[str, Any], error: Any) -> Problem:
    """Convert a pydantic error to a problem at the full field path, e.g. ``terms[0].weight``."""
    location = list(error["loc"])
    names = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location)
    where = row.at(names.removeprefix(".")) if location else row.where
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known, name = _names_at(fields, location[:-1]), str(location[-1])
        return Problem(where, "unknown field", ", ".join(known), did_you_mean(name, known))
    if error["type"] in ("missing", "missing_argument"):
        return Problem(where, "missing", f"fields: {', '.join(_names_at(fields, location[:-1]))}")
    if error["type"] == "json_invalid" and "hex escape" in error["msg"]:
        return Problem(where, "half a character (a lone surrogate)", "whole characters")
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if not location:
        allowed = f"an object with {', '.join(fields)}"
    return Problem(
        where, f"given {_short(error['input'])}", allowed.replace("valid string", "text")
    )


def _names_at(fields: Mapping[str, Any], location: Sequence[Any]) -> list[str]:
    """Return the field names of the object at ``location`` inside a record."""
    if not location:
        return list(fields)
    kind = fields[location[0]]
    for part in location[1:]:
        if isinstance(part, int):
            kind = get_args(kind)[0]
        elif dataclasses.is_dataclass(kind):
            kind = get_type_hints(kind)[str(part)]
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
