"""Rows of a user's files, each with its place, and the problems found in them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gfn_runner.errors import Problem, UserError

_MOST_SHOWN = 20


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


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise ``UserError`` if there are problems; of very many the first 20 and their number."""
    if len(problems) > _MOST_SHOWN:
        rest = Problem("and", f"{len(problems) - _MOST_SHOWN} more problems")
        raise UserError([*problems[:_MOST_SHOWN], rest])
    if problems:
        raise UserError(list(problems))


def checked_rows(
    source: str, rows: list[Row], problems: list[Problem], key: Key | None, what: str
) -> list[Row]:
    """The rows of a file, if there are some, nothing is wrong and no ``key`` occurs twice.

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
