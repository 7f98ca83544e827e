"""Pages and reports from the templates: one HTML file that needs no network, or Markdown."""

from __future__ import annotations

import base64
import gzip
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class Code:
    """Lines to be typed as they are, in a cell of a table."""

    lines: Sequence[str]


Cell = str | Code


@dataclass(frozen=True)
class Table:
    """Cells by row; all but the first column are numbers where ``numeric``."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG beside the page, and its caption."""

    file: Path
    caption: str


def render(template: str, **values: object) -> str:
    """A page from ``templates/<template>``.

    Only a page with ``live`` has a script. It is a mapping of seconds: ``refresh`` after which a browser
    loads the page again (``None`` once it does not change any more); since 1970 ``written``, and ``due``
    by which the next one would be written, after which the page calls what it had running silent.
    """
    return _environment().get_template(template).render(values)


@cache
def plotly() -> Markup:
    """Plotly's JavaScript, compressed, in base64: 2 MB instead of 5; takes 0.3 s, once a process."""
    script = files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return Markup(base64.b64encode(gzip.compress(script, 6, mtime=0)).decode("ascii"))


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=jinja2.select_autoescape(["html"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.globals |= {"live": None, "plotly": ""}
    made.filters |= {
        "base64": _base64,
        "local_time": local_time,
        "plain": _plain,
        "cell": _markdown_cell,
    }
    return made


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


def local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _plain(text: str) -> str:
    """Text of a file or a model, escaped so that Markdown shows it as it is."""
    # An underscore within a word is none in any Markdown.
    text = re.sub(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return " ".join(text.splitlines())


def _markdown_cell(cell: Cell) -> str:
    if isinstance(cell, Code):
        return "<br>".join(f"`{line.replace('|', chr(92) + '|')}`" for line in cell.lines)
    return _plain(cell).replace("|", "\\|")
