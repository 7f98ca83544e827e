"""Prompts, tables and records out of a user's files, each row with its place; knows no task.

Every reader finds all mistakes of a file before it raises, and names file, line and field; of a file
that is not UTF-8, the lines that are not. What they share: UTF-8, with or without a byte order mark;
line ends of Unix or Windows; blank lines between rows are skipped; a file without rows is refused. A
path ``hub:owner/name:split`` reads a data set of the hub.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError
from rapidfuzz import process

from gfn_runner.errors import Problem, UserError
from gfn_runner.hubdata import hub_rows, is_hub, parse_source, source_problems
from gfn_runner.paths import FOLDER, LocalPath

# A key of the config that names one of these files.
DataPath = Annotated[str, LocalPath()]
_MOST_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        source: the file, or the data set of the hub.
        line: on which it begins, from 1; in a data set its number.
        values: by field; an optional field that the row lacks is absent.
    """

    source: str
    line: int
    values: Mapping[str, Any]

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    def get(self, field: str, default: Any = None) -> Any:
        """The value of an optional field."""
        return self.values.get(field, default)

    @property
    def where(self) -> str:
        """The place as messages name it."""
        return f"{self.source}, {'row' if is_hub(self.source) else 'line'} {self.line}"

    def at(self, field: str) -> str:
        """The place of one field as messages name it."""
        return f"{self.where}, field {field}"


Key = Callable[[Row], Hashable]
Check = Callable[[Row], Iterable[Problem]]


def path_problems(config_key: str, path: str) -> Iterator[Problem]:
    """What is wrong with a path of the config, seen without opening it; for ``Task.problems``."""
    if is_hub(path):
        for problem in source_problems(path):
            yield dataclasses.replace(problem, where=config_key, what=f"{path}: {problem.what}")
    elif not Path(path).expanduser().is_file():
        kind = "a folder" if Path(path).expanduser().is_dir() else "no such file"
        yield Problem(config_key, f"given {path!r}: {kind}", "a file, or hub:owner/name:split")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        UserError: if there is no such file, it cannot be read, or some lines are not UTF-8.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise UserError.one(str(path), "no such file", "a file that exists") from error
    except IsADirectoryError as error:
        raise UserError.one(str(path), "a folder", "a file") from error
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise UserError.one(str(path), f"cannot be read: {error}", "a readable file") from error
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise_all(list(_undecodable(str(path), data)))
        raise


def _undecodable(source: str, data: bytes) -> Iterator[Problem]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            yield Problem(
                f"{source}, line {number}", "bytes that are not UTF-8", "UTF-8", "save it as UTF-8"
            )


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise ``UserError`` if there are problems; of very many the first 20 and their number."""
    if len(problems) > _MOST_SHOWN:
        rest = Problem("and", f"{len(problems) - _MOST_SHOWN} more mistakes of this kind or others")
        raise UserError([*problems[:_MOST_SHOWN], rest])
    if problems:
        raise UserError(list(problems))


def duplicate_problems(rows: Sequence[Row], key: Key, what: str = "entry") -> Iterator[Problem]:
    """Rows whose key an earlier row has already.

    Args:
        rows: of one file or of several.
        key: what may not occur twice.
        what: name of the thing for the message.
    """
    first: dict[Hashable, Row] = {}
    for row in rows:
        earlier = first.setdefault(key(row), row)
        if earlier is not row:
            same = earlier.where if earlier.source != row.source else f"line {earlier.line}"
            yield Problem(row.where, f"the same {what} as {same}", f"each {what} once")


def held_out(rows: Sequence[Row], share: float, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Cut rows at random into those to train on and those kept out; either keeps the order.

    Args:
        rows: of one file.
        share: of rows kept out, in 0..1; at least one row is, and at least one is not.
        rng: of the draw.

    Raises:
        UserError: if there is only one row.
    """
    if len(rows) < 2:
        raise UserError.one(
            rows[0].source, "one row, which cannot be both trained on and kept out", "two or more"
        )
    n_out = min(max(1, round(share * len(rows))), len(rows) - 1)
    out = set(rng.sample(range(len(rows)), n_out))
    return (
        [row for place, row in enumerate(rows) if place not in out],
        [row for place, row in enumerate(rows) if place in out],
    )


def _checked_rows(
    source: str, rows: list[Row], problems: list[Problem], key: Key | None, what: str
) -> list[Row]:
    if key is not None:
        problems = [*problems, *duplicate_problems(rows, key, what)]
    raise_all(problems)
    if not rows:
        raise UserError.one(source, f"no {what} in it", f"at least one {what}")
    return rows


# -- prompts --------------------------------------------------------------------------------------


def read_prompts(path: str, *, unique: bool = True) -> list[Row]:
    """Prompts, one a line, under the field ``prompt``; spaces at the right of a line are dropped.

    Blank lines are no prompts and are skipped. Of a data set the column is ``prompt`` unless the path
    names another.

    Args:
        path: a text file or ``hub:owner/name:split[:column]``.
        unique: refuse a prompt that occurs twice.

    Raises:
        UserError: with all mistakes.
    """
    problems: list[Problem] = []
    if is_hub(path):
        column = parse_source(path).column or "prompt"
        records, problems = _validated(path, enumerate(hub_rows(path), 1), {column: str}, (), False)
        texts = [(row.line, row[column]) for row in records]
    else:
        texts = [(n, line) for n, line in enumerate(read_text(path).split("\n"), start=1)]
    rows = [Row(path, n, {"prompt": text.rstrip()}) for n, text in texts if text.strip()]
    key = (lambda row: row["prompt"]) if unique else None
    return _checked_rows(path, rows, problems, key, "prompt")


# -- tables ---------------------------------------------------------------------------------------


def read_table(
    path: str,
    columns: Sequence[str],
    delimiter: str | None = None,
    *,
    optional: Sequence[str] = (),
    header: bool = True,
    key: Key | None = None,
    what: str = "row",
) -> list[Row]:
    """Rows of a CSV or TSV file; cells are texts without spaces around them.

    Comma-separated cells may be quoted, and then hold commas, line ends and doubled quotes. Tab-
    separated ones have no quoting: a quote is a character like any other. Further columns and rows of
    empty cells are ignored.

    Args:
        path: a file or ``hub:owner/name:split``.
        columns: must be there and hold something in each row.
        delimiter: one character; ``None`` takes a tab for ``.tsv`` and ``.tab``, else a comma.
        optional: columns that may be missing or empty; an empty cell is absent from its row.
        header: whether the first row names the columns; else they are ``columns`` in that order.
        key: what may not occur in two rows.
        what: name of a row for messages.

    Raises:
        UserError: with all mistakes.
    """
    if is_hub(path):
        fields: dict[str, Any] = {**dict.fromkeys(columns, str), **dict.fromkeys(optional, str)}
        _no_column(path)
        rows, problems = _validated(path, enumerate(hub_rows(path), 1), fields, optional, False)
        rows = [Row(path, r.line, {k: v.strip() for k, v in r.values.items()}) for r in rows]
        problems += [p for row in rows for p in _empty_cells(row, columns)]
        return _checked_rows(path, rows, problems, key, what)
    lines, problems = _cells(path, delimiter)
    names = list(columns)
    if header and lines:
        names = [name.strip() for name in lines.pop(0)[1]]
        raise_all([*problems, *_header_problems(path, names, columns)])
    rows = []
    for number, cells in lines:
        if len(cells) != len(names):
            problems.append(_wrong_width(path, number, len(cells), names))
            continue
        whole = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
        kept = {n: v for n, v in whole.items() if n in columns or (n in optional and v)}
        rows.append(Row(path, number, kept))
        problems += _empty_cells(rows[-1], columns)
    return _checked_rows(path, rows, problems, key, what)


def _cells(path: str, delimiter: str | None) -> tuple[list[tuple[int, list[str]]], list[Problem]]:
    """Rows of cells with the line each begins on, and where the file is no table."""
    if delimiter is None:
        delimiter = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
    text = io.StringIO(read_text(path), newline="")
    if delimiter == "\t":
        reader = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(text, delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    begun = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((begun, cells))
            begun = reader.line_num + 1
    except csv.Error as error:
        wrong = Problem(
            f"{path}, line {begun}",
            f"no row of a table: {error}",
            "a quoted cell ends with a quote before the next delimiter; a quote in it is doubled",
        )
        return lines, [wrong]
    return lines, []


def _header_problems(path: str, names: Sequence[str], columns: Sequence[str]) -> Iterator[Problem]:
    for name in columns:
        if name not in names:
            near = process.extractOne(name, names, score_cutoff=60)
            fix = f"rename {near[0]} to {name}" if near else ""
            yield Problem(
                f"{path}, line 1", f"no column {name}", f"columns: {', '.join(names)}", fix
            )
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        yield Problem(f"{path}, line 1", f"two columns are called {name}", "different names")


def _wrong_width(path: str, number: int, n_cells: int, names: Sequence[str]) -> Problem:
    return Problem(
        f"{path}, line {number}",
        f"{n_cells} cells",
        f"{len(names)}, one for each of {', '.join(names)}",
        "a text that holds the delimiter stands in quotes" if n_cells > len(names) else "",
    )


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
    """Objects of a JSONL file, one a line.

    Args:
        path: a file or ``hub:owner/name:split``.
        fields: type of each field, as pydantic knows them and strictly: ``str``, ``int``,
            ``list[str]``, a pydantic dataclass for an object, … Values come out as these types.
        optional: fields that may be missing or null.
        allow_unknown: drop other fields, rather than refuse them; always so with a data set.
        check: what is wrong with a record whose fields have the right types.
        key: what may not occur in two records.
        what: name of a record for messages.

    Raises:
        UserError: with all mistakes.
    """
    if is_hub(path):
        _no_column(path)
        objects: Iterable[tuple[int, Any]] = enumerate(hub_rows(path), 1)
        allow_unknown = True
    else:
        objects = _objects(path)
    rows, problems = _validated(path, objects, fields, optional, not allow_unknown, check)
    return _checked_rows(path, rows, problems, key, what)


class _TwiceError(ValueError):
    """A field stands twice in one object, and JSON would take the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise _TwiceError(name)
    return dict(pairs)


def _objects(path: str) -> Iterator[tuple[int, Any]]:
    """What each line holds; a problem where it is no JSON."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield number, json.loads(line, object_pairs_hook=_once)
        except _TwiceError as error:
            yield number, Problem(f"{where}, field {error}", "given twice", "each field once")
        except json.JSONDecodeError as error:
            fix = "one object a line, no list around them" if line.strip() in "[{" else ""
            reason = f"not JSON: {error.msg}, at column {error.colno}"
            yield number, Problem(where, reason, "a JSON object on one line", fix)
        except (ValueError, RecursionError) as error:  # thousands of digits, deep nesting
            yield number, Problem(where, str(error), "a JSON object on one line")


def _validated(
    source: str,
    objects: Iterable[tuple[int, Any]],
    fields: Mapping[str, Any],
    optional: Sequence[str],
    strict: bool,
    check: Check | None = None,
) -> tuple[list[Row], list[Problem]]:
    """Rows of the objects that hold, and what is wrong with the others."""
    adapters = {name: TypeAdapter(kind) for name, kind in fields.items()}
    context = {} if is_hub(source) else {FOLDER: Path(source).expanduser().parent}
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, given in objects:
        row = Row(source, number, {})
        if isinstance(given, Problem):
            problems.append(given)
            continue
        if not isinstance(given, dict):
            names = ", ".join(fields)
            problems.append(Problem(row.where, f"given {_short(given)}", f"an object with {names}"))
            continue
        values: dict[str, Any] = {}
        wrong = list(_unknown_fields(row, given, fields)) if strict else []
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
            rows.append(Row(source, number, values))
            problems += check(rows[-1]) if check else ()
    return rows, problems


def _no_column(path: str) -> None:
    column = parse_source(path).column
    if column is not None:
        raise UserError.one(path, f"names the column {column}", "hub:owner/name:split")


def _unknown_fields(
    row: Row, given: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[Problem]:
    for name in given:
        if name not in known:
            yield _unknown(row.at(name), name, list(known))


def _unknown(where: str, name: str, known: Sequence[str]) -> Problem:
    near = process.extractOne(name, known, score_cutoff=60)
    return Problem(
        where, "unknown field", ", ".join(known), f"did you mean {near[0]}?" if near else ""
    )


def _explained(row: Row, name: str, kind: Any, error: Any) -> Problem:
    """A pydantic error as a problem at its full field, ``terms[0].weight``."""
    location = list(error["loc"])
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _unknown(row.at(name), str(location[-1]), _names_at(kind, location[:-1]))
    if error["type"] in ("missing", "missing_argument"):
        return Problem(
            row.at(name), "missing", f"fields: {', '.join(_names_at(kind, location[:-1]))}"
        )
    if error["type"] == "json_invalid" and "hex escape" in error["msg"]:
        return Problem(row.at(name), "half a character (a lone surrogate)", "whole characters")
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    allowed = allowed.replace("a valid string", "a text")
    return Problem(row.at(name), f"given {_short(error['input'])}", allowed)


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
    if kind in names:
        return names[kind]
    return "a list" if str(kind).startswith(("list", "tuple")) else "an object"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
