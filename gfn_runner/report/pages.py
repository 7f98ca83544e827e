"""What a page is made of (texts, tables, pictures, charts); and a report in Markdown; knows no runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A title; ``level`` 1 is the page's own."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines to be typed as they are; in a cell of a table, too."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Link:
    """A cell that leads to another page, by a path relative to this one."""

    text: str
    target: str


@dataclass(frozen=True)
class Badge:
    """A cell of one coloured word: ``kind`` is ``good``, ``busy``, ``bad``, ``odd`` or ``none``."""

    text: str
    kind: str


Cell = str | Code | Link | Badge


@dataclass(frozen=True)
class Table:
    """Cells by row; all but the first column are numbers where ``numeric``.

    ``owners`` names each row's curves (see :class:`Curve`): pointing at the row shows them, and
    ``colors`` gives it a spot in their colour.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: bool = True
    owners: Sequence[str] = ()
    colors: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page and what it shows."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Panel:
    """A chart with its words.

    Attributes:
        title: what is shown, with its unit.
        svg: the picture.
        legend: colours of CSS and what they stand for; empty where the title says it.
        note: below it.
    """

    title: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Panels:
    """Charts side by side, as many in a row as there is room for."""

    panels: Sequence[Panel]


@dataclass(frozen=True)
class Legend:
    """Colours and what they stand for, for all charts below it."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Facts:
    """Names and what they are, side by side."""

    pairs: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Folded:
    """What is shown only when its summary is clicked at."""

    summary: str
    blocks: Sequence[Block | HtmlBlock]


@dataclass(frozen=True)
class Live:
    """What a page says of itself that is written again while something lasts.

    Attributes:
        refresh: seconds after which a browser loads it again; ``None`` once it will not change any more.
        written: seconds since 1970.
        due: seconds since 1970 by which the next page would be written; past it the page calls what it
            had running silent. ``None`` where that cannot be told.
    """

    refresh: int | None
    written: float
    due: float | None = None


Block = Heading | Text | Items | Code | Table | Picture
HtmlBlock = Panels | Legend | Facts | Folded


def markdown(blocks: Sequence[Block]) -> str:
    """The page in Markdown; pictures by their file names."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return _plain(block.text)
        case Items():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Code():
            return "\n".join(("```", *block.lines, "```"))
        case Picture():
            return f"![{_plain(block.caption)}]({block.file.name})\n\n{_plain(block.caption)}"
        case Table():
            line = "---:" if block.numeric else "---"
            rule = "|---" + f"|{line}" * (len(block.header) - 1) + "|"
            rows = [[_markdown_cell(cell) for cell in row] for row in (block.header, *block.rows)]
            lines = [f"| {' | '.join(row)} |" for row in rows]
            return "\n".join((lines[0], rule, *lines[1:]))


def _plain(text: str) -> str:
    """Text of a file or a model that is not to be read as markup."""
    # An underscore within a word is none in any Markdown.
    text = re.sub(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.splitlines())


def _markdown_cell(cell: Cell) -> str:
    match cell:
        case Code():
            return "<br>".join(f"`{line.replace('|', chr(92) + '|')}`" for line in cell.lines)
        case Link():
            return f"[{_plain(cell.text)}]({cell.target})"
        case Badge():
            cell = cell.text
    return _plain(cell).replace("|", "\\|")
