"""Rows of user files with their location, and the problems found in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gfn_runner.errors import Problem, UserError

_MOST_SHOWN = 20


@dataclass(frozen=True)
class Row:
    """One row of a file or dataset.

    Attributes:
        source: path of the file, or name of the hub dataset.
        line: position, counted from 1 in ``unit``; for a file, the line the row begins on.
        values: values by field; optional fields that the row lacks are absent.
        unit: what ``line`` counts: ``line``, ``row`` of a dataset, or ``entry`` of a list on one line.
    """

    source: str
    line: int
    values: Mapping[str, Any]
    unit: str = "line"

    def __getitem__(self, field: str) -> Any:
        return self.values[field]

    def get(self, field: str, default: Any = None) -> Any:
        """Return the value of an optional field."""
        return self.values.get(field, default)

    @property
    def where(self) -> str:
        """Location of the row, for error messages."""
        return f"{self.source}, {self.unit} {self.line}"

    def at(self, field: str) -> str:
        """Return the location of one field, for error messages."""
        return f"{self.where}, field {field}"


Key = Callable[[Row], Hashable]
Check = Callable[[Row], Iterable[Problem]]


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise ``UserError`` if there are problems; beyond 20, only the first 20 and the number of the rest."""
    if len(problems) > _MOST_SHOWN:
        rest = Problem("and", f"{len(problems) - _MOST_SHOWN} more problems")
        raise UserError([*problems[:_MOST_SHOWN], rest])
    if problems:
        raise UserError(list(problems))


def checked_rows(
    source: str, rows: list[Row], problems: list[Problem], key: Key | None, what: str
) -> list[Row]:
    """Return the rows of a file if there is at least one, no problem and no repeated ``key``.

    Raises:
        UserError: with all problems.
    """
    problems, first = list(problems), dict[Hashable, Row]()
    for row in rows if key is not None else ():
        other = first.setdefault(key(row), row)  # type: ignore[misc]  # there is a key here
        if other is not row:
            same = f"the same {what} as {other.unit} {other.line}"
            problems.append(Problem(row.where, same, f"each {what} once"))
    raise_all(problems)
    if not rows:
        raise UserError.one(source, f"no {what} in it", f"at least one {what}")
    return rows
