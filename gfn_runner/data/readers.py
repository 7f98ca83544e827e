"""Prompts, tables and records out of a user's files, each row with its place; knows no task.

Every reader finds all mistakes of a file before it raises, and names file, line and field; of a file
that is not UTF-8, the lines that are not. What they share: UTF-8, with or without a byte order mark;
line ends of Unix, Windows or old Macs; blank lines between rows are skipped; a file without rows is
refused. A path ``hub:owner/name:split`` reads a data set of the hub.
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

from gfn_runner.data.hub import hub_rows, is_hub, parse_source, source_problems
from gfn_runner.data.json_records import Entry, json_entries
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.local_paths import FOLDER, LocalPath

# A key of the config that names one of these files.
DataPath = Annotated[str, LocalPath()]
_MOST_SHOWN = 20
_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Row:
    """One row of a file.

    Attributes:
        source: the file, or the data set of the hub.
        line: on which it begins, from 1; see ``unit``.
        values: by field; an optional field that the row lacks is absent.
        unit: what ``line`` counts: ``line``, ``row`` of a data set, ``entry`` of a list on one line.
    """

    source: str
    line: int
    values: Mapping[str, Any]
    unit: str = "line"

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    def get(self, field: str, default: Any = None) -> Any:
        """The value of an optional field."""
        return self.values.get(field, default)

    @property
    def where(self) -> str:
        """The place as messages name it."""
        return f"{self.source}, {self.unit} {self.line}"

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
        text = data.decode("utf-8").removeprefix("\ufeff")
        return text if "\n" in text else text.replace("\r", "\n")
    except UnicodeDecodeError:
        raise_all(list(_undecodable(str(path), data)))
        raise


def _undecodable(source: str, data: bytes) -> Iterator[Problem]:
    end = b"\n" if b"\n" in data else b"\r"
    for number, line in enumerate(data.split(end), start=1):
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
            same = (
                earlier.where if earlier.source != row.source else f"{earlier.unit} {earlier.line}"
            )
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
        rows, problems = _validated(path, _hub_entries(path), {column: str}, (), False)
        rows = [dataclasses.replace(row, values={"prompt": row[column]}) for row in rows]
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        rows = [Row(path, n, {"prompt": line}) for n, line in lines]
    rows = [
        dataclasses.replace(row, values={"prompt": row["prompt"].rstrip()})
        for row in rows
        if row["prompt"].strip()
    ]
    key = (lambda row: row["prompt"]) if unique else None
    return _checked_rows(path, rows, problems, key, "prompt")


# -- tables ---------------------------------------------------------------------------------------


def read_table(
    path: str,
    columns: Sequence[str],
    delimiter: str | None = None,
    *,
    optional: Sequence[str] = (),
    other_columns: Sequence[str] = (),
    header: bool = True,
    check: Check | None = None,
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
        delimiter: one character; ``None`` takes a tab for ``.tsv`` and ``.tab``, else a comma. Where the
            header lacks columns then, and only one of comma, semicolon, tab and bar finds them, it is
            that one.
        optional: columns that may be missing or empty; an empty cell is absent from its row.
        other_columns: in place of ``columns``, where the header has all of these; rows then have them.
        header: whether the first row names the columns; else they are ``columns`` in that order.
        check: what is wrong with a row that has all its cells.
        key: what may not occur in two rows.
        what: name of a row for messages.

    Raises:
        UserError: with all mistakes.
    """
    if is_hub(path):
        rows, problems = _hub_table(path, columns, optional)
        return _checked_rows(path, rows, problems, key, what)
    text = read_text(path)
    if delimiter is None:
        forms = [columns, *([other_columns] if other_columns else [])]
        delimiter = _delimiter(path, text, forms if header else [])
    lines, problems = _cells(path, text, delimiter)
    names = list(columns)
    if header and lines:
        names = [name.strip() for name in lines.pop(0)[1]]
        if other_columns and set(other_columns) <= set(names):
            columns = other_columns
        raise_all([*problems, *_header_problems(path, names, columns)])
    rows = []
    for number, cells in lines:
        if len(cells) != len(names):
            problems.append(_wrong_width(path, number, len(cells), names))
            continue
        whole = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
        kept = {n: v for n, v in whole.items() if n in columns or (n in optional and v)}
        rows.append(Row(path, number, kept))
        empty = list(_empty_cells(rows[-1], columns))
        problems += empty or (check(rows[-1]) if check else ())
    return _checked_rows(path, rows, problems, key, what)


def _hub_table(
    path: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[Row], list[Problem]]:
    """Rows of a data set of the hub, and what is wrong with them."""
    fields: dict[str, Any] = {**dict.fromkeys(columns, str), **dict.fromkeys(optional, str)}
    _no_column(path)
    rows, problems = _validated(path, _hub_entries(path), fields, optional, False)
    rows = [
        dataclasses.replace(row, values={k: v.strip() for k, v in row.values.items()})
        for row in rows
    ]
    return rows, problems + [p for row in rows for p in _empty_cells(row, columns)]


def _delimiter(path: str, text: str, forms: Sequence[Sequence[str]]) -> str:
    """The one that the file's name says, unless only another one finds all columns of a form."""
    named = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
    header = next((line for line in text.splitlines() if line.strip()), "")

    def finds(delimiter: str) -> bool:
        names = {name.strip().strip('"').strip() for name in header.split(delimiter)}
        return any(set(form) <= names for form in forms)

    others = [other for other in _DELIMITERS if other != named and finds(other)]
    return others[0] if len(others) == 1 and not finds(named) else named


def _cells(
    path: str, text: str, delimiter: str
) -> tuple[list[tuple[int, list[str]]], list[Problem]]:
    """Rows of cells with the line each begins on, and where the file is no table."""
    csv.field_size_limit(
        max(csv.field_size_limit(), len(text))
    )  # 131 072 characters, unless raised
    file = io.StringIO(text, newline="")
    if delimiter == "\t":
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
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
    if len(names) == 1 < len(columns) and names[0] not in columns:
        missing = f"no columns {', '.join(columns)}"
        yield Problem(f"{path}, line 1", missing, f"columns: {', '.join(names)}")
        return
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
    """Objects of a file: one a line (JSONL), or all in one JSON list.

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
        allow_unknown = True
    objects = read_entries(path)
    rows, problems = _validated(path, objects, fields, optional, not allow_unknown, check)
    return _checked_rows(path, rows, problems, key, what)


def read_entries(path: str) -> list[Entry]:
    """What stands in a file of JSON objects, or in a data set of the hub, unchecked.

    Raises:
        UserError: if it cannot be read, or is of another form altogether.
    """
    return _hub_entries(path) if is_hub(path) else json_entries(path, read_text(path))


def _hub_entries(path: str) -> list[Entry]:
    return [Entry("row", number, row) for number, row in enumerate(hub_rows(path), start=1)]


def _validated(
    source: str,
    objects: Iterable[Entry],
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
    for entry in objects:
        given = entry.value
        row = Row(source, entry.number, {}, entry.unit)
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
            rows.append(dataclasses.replace(row, values=values))
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
