"""Rendering of templates into reports: one self-contained HTML file that needs no network, or Markdown."""

from __future__ import annotations

import base64
import gzip
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from gfn_runner.report.table import markdown, plain


@dataclass(frozen=True)
class Picture:
    """A PNG file next to the page, and its caption."""

    file: Path
    caption: str


def render(template: str, **values: object) -> str:
    """Render ``templates/<template>``.

    Only a page with ``written``, in seconds since 1970, contains a script; with ``refresh``, the browser
    reloads the page after that many seconds.
    """
    return _environment().get_template(template).render(values)


@cache
def plotly() -> Markup:
    """Return Plotly's JavaScript as gzip in base64: 2 MB instead of 5. Takes 0.3 s, once per process."""
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
    made.globals |= {"written": None, "refresh": None, "plotly": ""}
    made.filters |= {
        "base64": _base64,
        "local_time": local_time,
        "plain": lambda text: plain(" ".join(text.splitlines())),
        "markdown": markdown,
    }
    return made


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode("ascii")


def local_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
