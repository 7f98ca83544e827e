"""Readers for user files: prompts (text), tables (CSV, TSV) and records (JSON, JSONL).

Each reader collects all problems of a file, with file, line and field, before it raises. Files are
UTF-8, with or without a byte order mark; line endings may be those of Unix, Windows or classic Mac OS;
blank lines between rows are skipped; a file without rows is an error. A path of the form
``hub:owner/name:split`` reads a dataset from the hub.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

from rapidfuzz import process

from gfn_runner.data.hub import hub_rows, is_hub, parse_source, source_problems
from gfn_runner.data.json_records import Entry, json_entries, validated_rows
from gfn_runner.data.rows import Check, Key, Row, checked_rows, raise_all
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.local_paths import LocalPath

# Type of config keys that name one of these files.
DataPath = Annotated[str, LocalPath()]
_MOST_NAMES, _LONGEST_NAME = 30, 60  # limits for column names in an error message


def path_problems(config_key: str, path: str) -> Iterator[Problem]:
    """Yield the problems of a configured path without opening it; for use in ``Task.problems``."""
    if is_hub(path):
        for problem in source_problems(path):
            yield dataclasses.replace(problem, where=config_key, what=f"{path}: {problem.what}")
    elif not os.path.isfile(os.path.expanduser(path)):
        exists = os.path.exists(os.path.expanduser(path))
        kind = "a folder or a device" if exists else "no such file"
        yield Problem(config_key, f"given {path!r}: {kind}", "a file, or hub:owner/name:split")


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: if the file does not exist, cannot be read, or has lines that are not UTF-8.
    """
    try:
        data = Path(os.path.expanduser(path)).read_bytes()
    except FileNotFoundError as error:
        raise UserError.one(str(path), "no such file", "a file that exists") from error
    except IsADirectoryError as error:
        raise UserError.one(str(path), "a folder", "a file") from error
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        raise UserError.one(str(path), f"cannot be read: {error}", "a readable file") from error
    line_end = b"\n" if b"\n" in data else b"\r"
    lines, problems = [], []
    for number, line in enumerate(data.split(line_end), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            where = f"{path}, line {number}"
            problems.append(Problem(where, "bytes that are not UTF-8", "UTF-8", "save it as UTF-8"))
    raise_all(problems)
    return "\n".join(lines).removeprefix("\ufeff")


def held_out(rows: Sequence[Row], share: float, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Split rows at random into training and held-out rows; both keep their order.

    Args:
        share: fraction of rows to hold out, in 0..1; each part gets at least one row.
        rng: source of randomness for the split.

    Raises:
        UserError: if there is only one row.
    """
    if len(rows) < 2:
        what = "one row, which cannot be both trained on and held out"
        raise UserError.one(rows[0].source, what, "two or more")
    n_out = min(max(1, round(share * len(rows))), len(rows) - 1)
    out = set(rng.sample(range(len(rows)), n_out))
    return (
        [row for place, row in enumerate(rows) if place not in out],
        [row for place, row in enumerate(rows) if place in out],
    )


# -- prompts --------------------------------------------------------------------------------------


def read_prompts(path: str, *, unique: bool = True) -> list[Row]:
    """Read prompts, one per line, into the field ``prompt``; trailing whitespace is stripped.

    Args:
        path: a text file or ``hub:owner/name:split[:column]``; ``column`` defaults to ``prompt``.
        unique: whether a repeated prompt is an error.

    Raises:
        UserError: with all problems of the file.
    """
    if is_hub(path):
        column = parse_source(path)["column"] or "prompt"
        found, problems = validated_rows(path, read_entries(path), {column: str})
        texts, unit = [(row.line, row[column]) for row in found], "row"
    else:
        texts, unit = list(enumerate(read_text(path).split("\n"), start=1)), "line"
        problems = []
    rows = [Row(path, n, {"prompt": text.rstrip()}, unit) for n, text in texts if text.strip()]
    return checked_rows(path, rows, problems, itemgetter("prompt") if unique else None, "prompt")


# -- tables ---------------------------------------------------------------------------------------


def read_table(
    path: str,
    columns: Sequence[str],
    *,
    check: Check | None = None,
    key: Key | None = None,
    what: str = "row",
) -> list[Row]:
    """Read the rows of a CSV or TSV file; cells are strings without surrounding whitespace.

    In CSV files, quoted cells may contain delimiters, line breaks and doubled quotes; in TSV files, quotes
    have no special meaning. Extra columns and rows of empty cells are ignored. The delimiter is a tab for
    ``.tsv`` and ``.tab`` files, and a comma otherwise.

    Args:
        path: a file or ``hub:owner/name:split``.
        columns: required columns, non-empty in each row.
        check: yields the problems of a row that has all its cells.
        key: value that must be unique across rows.
        what: what to call a row in error messages.

    Raises:
        UserError: with all problems of the file.
    """
    if is_hub(path):
        _no_column(path)
        given, problems = validated_rows(path, read_entries(path), dict.fromkeys(columns, str))
        rows = [
            dataclasses.replace(row, values={k: v.strip() for k, v in row.values.items()})
            for row in given
        ]
        problems += [p for row in rows for p in _empty_cells(row, columns)]
        return checked_rows(path, rows, problems, key, what)
    delimiter = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
    lines, problems = _cells(path, read_text(path), delimiter)
    names: list[str] = []
    if lines:
        names = [name.strip() for name in lines.pop(0)[1]]
        raise_all([*problems, *_header_problems(path, names, columns)])
    rows = []
    for number, cells in lines:
        if len(cells) != len(names):
            fix = "put a text that contains a comma in quotes" if delimiter == "," else ""
            allowed = f"{len(names)}, one for each of {_listed(names)}"
            fix = fix if len(cells) > len(names) else ""
            problems.append(Problem(f"{path}, line {number}", f"{len(cells)} cells", allowed, fix))
            continue
        pairs = zip(names, cells, strict=True)
        values = {name: cell.strip() for name, cell in pairs if name in columns}
        rows.append(Row(path, number, values))
        empty = list(_empty_cells(rows[-1], columns))
        problems += empty or (check(rows[-1]) if check else ())
    return checked_rows(path, rows, problems, key, what)


def _cells(
    path: str, text: str, delimiter: str
) -> tuple[list[tuple[int, list[str]]], list[Problem]]:
    """Return each row's cells with the line the row begins on, and the problem if the file is not a table."""
    # A cell may exceed the default limit of 131,072 characters.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    lines: list[tuple[int, list[str]]] = []
    first_line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((first_line, cells))
            first_line = reader.line_num + 1
    except csv.Error as error:
        allowed = (
            "a quoted cell ends with a quote before the next delimiter; a quote in it is doubled"
        )
        what = f"not a valid row of CSV: {error}"
        return lines, [Problem(f"{path}, line {first_line}", what, allowed)]
    return lines, []


def _header_problems(path: str, names: Sequence[str], columns: Sequence[str]) -> Iterator[Problem]:
    where, allowed = f"{path}, line 1", f"columns: {_listed(names)}"
    for name in columns:
        if name not in names:
            near = process.extractOne(name, names, score_cutoff=60)
            fix = f"rename {near[0][:_LONGEST_NAME]} to {name}" if near else ""
            yield Problem(where, f"no column {name}", allowed, fix)
    for name in sorted(name for name, n in Counter(names).items() if name and n > 1):
        yield Problem(where, f"two columns are called {name}", "different names")


def _listed(names: Sequence[str]) -> str:
    """Format column names for a message; a file that is not a table may have many or very long ones."""
    shown = [name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names]
    more = f", and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more


def _empty_cells(row: Row, columns: Sequence[str]) -> Iterator[Problem]:
    for name in columns:
        if not row.get(name):
            yield Problem(row.at(name), "empty", "a text")


# -- records --------------------------------------------------------------------------------------


def read_records(
    path: str,
    fields: Mapping[str, Any],
    *,
    optional: Sequence[str] = (),
    allow_unknown: bool = False,
    check: Check | None = None,
    key: Key | None = None,
    what: str = "record",
) -> list[Row]:
    """Read the objects of a JSONL file, or of a file with a single JSON list.

    Args:
        path: a file or ``hub:owner/name:split``.
        fields: type of each field, validated by pydantic in strict mode: ``str``, ``int``,
            ``list[str]``, a pydantic dataclass for an object, … Values have these types.
        optional: fields that may be missing or null.
        allow_unknown: drop other fields instead of rejecting them; always the case for hub datasets.
        check: yields the problems of a record whose fields have the right types.
        key: value that must be unique across records.
        what: what to call a record in error messages.

    Raises:
        UserError: with all problems of the file.
    """
    if is_hub(path):
        _no_column(path)
    strict = not (allow_unknown or is_hub(path))
    rows, problems = validated_rows(path, read_entries(path), fields, optional, strict, check)
    return checked_rows(path, rows, problems, key, what)


def read_entries(path: str) -> list[Entry]:
    """Return the objects of a JSON file, or the rows of a hub dataset, without validation.

    Raises:
        UserError: if the source cannot be read, or is not in the expected format at all.
    """
    if is_hub(path):
        return [(Row(path, n, {}, "row"), row) for n, row in enumerate(hub_rows(path), start=1)]
    return json_entries(path, read_text(path))


def _no_column(path: str) -> None:
    column = parse_source(path)["column"]
    if column is not None:
        raise UserError.one(path, f"names the column {column}", "hub:owner/name:split")
