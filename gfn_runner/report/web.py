"""Blocks as one HTML file that needs no other, and how it is put into its place; knows no runs."""

from __future__ import annotations

import base64
import html
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from gfn_runner.report.pages import (
    Badge,
    Block,
    Cell,
    Code,
    Facts,
    Folded,
    Heading,
    HtmlBlock,
    Items,
    Legend,
    Link,
    Live,
    Panel,
    Panels,
    Picture,
    Table,
    Text,
)

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def html_page(blocks: Sequence[Block | HtmlBlock], live: Live | None = None) -> str:
    """The page as one file that needs no other: pictures within it, no link to anywhere else.

    Args:
        blocks: from top to bottom.
        live: for a page that is written again and again; only such a one has a script.
    """
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    refresh = script = ""
    if live is not None:
        script = f"<script>{_SCRIPT}</script>"
        if live.refresh is not None:
            refresh = f'<meta http-equiv="refresh" content="{live.refresh}">'
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{html.escape(title)}</title>{refresh}',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head>",
            "<body>",
            *map(_html, blocks),
            *([f"<footer>{_written(live)}</footer>"] if live is not None else []),
            f"{script}</body></html>",
            "",
        )
    )


def _written(live: Live) -> str:
    said = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(live.written))
    due = "" if live.due is None else f' data-due="{live.due:.0f}"'
    return f'page written {said}<span data-written="{live.written:.0f}"{due}></span>'


def write_page(path: Path, text: str) -> None:
    """Put a page into its place: who reads it while it is written sees the one before, never a half.

    Several processes may write the same page; the last one's stays.

    Raises:
        OSError: if it cannot be written; what was there is left.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _html(block: Block | HtmlBlock) -> str:
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
            return _html_table(block)
        case Panels():
            return f'<div class="panels">{"".join(map(_html_panel, block.panels))}</div>'
        case Legend():
            return _html_legend(block.entries)
        case Facts():
            pairs = (
                f"<div><dt>{html.escape(n)}</dt><dd>{_html_cell(c)}</dd></div>"
                for n, c in block.pairs
            )
            return f"<dl>{''.join(pairs)}</dl>"
        case Folded():
            inside = "\n".join(map(_html, block.blocks))
            return f"<details><summary>{html.escape(block.summary)}</summary>{inside}</details>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
    rows = []
    for number, row in enumerate(table.rows):
        owner = f' data-owner="{html.escape(table.owners[number])}"' if table.owners else ""
        spot = _spot(table.colors[number]) if table.colors else ""
        first, *others = map(_html_cell, row)
        cells = "".join(f"<td>{cell}</td>" for cell in (spot + first, *others))
        rows.append(f"<tr{owner}>{cells}</tr>")
    classes = [name for name, on in (("numeric", table.numeric), ("runs", table.owners)) if on]
    kind = f' class="{" ".join(classes)}"' if classes else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table{kind}><tr>{head}</tr>\n{body}\n</table></div>'


def _html_panel(panel: Panel) -> str:
    note = f"<p>{html.escape(panel.note)}</p>" if panel.note else ""
    legend = _html_legend(panel.legend) if panel.legend else ""
    title = f"<h3>{html.escape(panel.title)}</h3>"
    return f'<section class="panel">{title}{panel.svg}{legend}{note}</section>'


def _html_legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<li>{_spot(color)}{html.escape(label)}</li>" for color, label in entries)
    return f'<ul class="legend">{items}</ul>'


def _spot(color: str) -> str:
    return f'<i style="background:{html.escape(color)}"></i>' if color else ""


def _html_cell(cell: Cell) -> str:
    match cell:
        case Code():
            return "<br>".join(f"<code>{html.escape(line)}</code>" for line in cell.lines)
        case Link():
            return f'<a href="{html.escape(quote(cell.target))}">{html.escape(cell.text)}</a>'
        case Badge():
            return f'<b class="badge {cell.kind}">{html.escape(cell.text)}</b>'
        case str():
            return "<br>".join(html.escape(cell).splitlines())
