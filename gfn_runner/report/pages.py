"""A page of headings, texts, tables and pictures, as Markdown and as one HTML file; knows no runs."""

from __future__ import annotations

import base64
import html
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
class Table:
    """Cells by row; all but the first column are numbers where ``numeric``."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Code]]
    numeric: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page and what it shows."""

    file: Path
    caption: str


Block = Heading | Text | Items | Code | Table | Picture

# Wide tables scroll by themselves, the page does not.
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
.numeric th + th, .numeric td + td { text-align: right; white-space: nowrap;
                                     font-variant-numeric: tabular-nums }
.numeric th + th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem .8rem }
code { font: .85rem ui-monospace, monospace }
figure { margin: 1.5rem 0 }
figure img { max-width: 100%; height: auto }
figcaption { color: #555; font-size: .9rem }
"""


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


def _markdown_cell(cell: str | Code) -> str:
    if isinstance(cell, Code):
        return "<br>".join(f"`{line.replace('|', chr(92) + '|')}`" for line in cell.lines)
    return _plain(cell).replace("|", "\\|")


def html_page(blocks: Sequence[Block]) -> str:
    """The page as one file that needs no other: pictures as data URIs, no script, no link."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{html.escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head>",
            "<body>",
            *map(_html, blocks),
            "</body></html>",
            "",
        )
    )


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Text():
            return f"<p>{html.escape(block.text)}</p>"
        case Items():
            items = "".join(f"<li>{html.escape(item)}</li>" for item in block.items)
            return f"<ul>{items}</ul>"
        case Code():
            return f"<pre><code>{html.escape(chr(10).join(block.lines))}</code></pre>"
        case Picture():
            data = base64.b64encode(block.file.read_bytes()).decode("ascii")
            caption = html.escape(block.caption)
            return (
                f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
        case Table():
            head = "".join(f"<th>{html.escape(name)}</th>" for name in block.header)
            rows = "\n".join(
                f"<tr>{''.join(f'<td>{_html_cell(cell)}</td>' for cell in row)}</tr>"
                for row in block.rows
            )
            kind = ' class="numeric"' if block.numeric else ""
            return f'<div class="wide"><table{kind}><tr>{head}</tr>\n{rows}\n</table></div>'


def _html_cell(cell: str | Code) -> str:
    if isinstance(cell, Code):
        return "<br>".join(f"<code>{html.escape(line)}</code>" for line in cell.lines)
    return "<br>".join(html.escape(cell).splitlines())
