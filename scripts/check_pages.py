"""Check pages in a headless Chromium: no network requests, no overlaps, and all charts have data.

    python scripts/check_pages.py outputs/arithmetic/2026-01-31/12-00-00/report.html --out screenshots

Requires `pip install 'gfn-runner[browser]'` and a Chromium (Debian: `apt-get install chromium`). Exits
with status 1 and prints a line for each problem.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.runtime.terminal import prepare_output

WIDTHS = (1280, 390)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Returns a sentence for each problem. Elements that merely touch do not overlap.
_PROBE = r"""
() => {
  const wrong = [];
  const box = e => e.getBoundingClientRect();
  const seen = e => { const b = box(e); return b.width > 0 && b.height > 0; };
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const named = e => (e.getAttribute('aria-label') || e.textContent || e.tagName).trim().slice(0, 40);
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width + 1) {
    wrong.push('the page is wider than the window: ' + document.documentElement.scrollWidth);
  }
  for (const e of document.body.querySelectorAll('*')) {
    // What scrolls within its own frame may be wider; charts are looked at below.
    if (e.closest('.wide, pre, .plot') && !e.matches('.wide, pre, .plot')) continue;
    if (e.closest('#js-plotly-tester')) continue;
    if (seen(e) && (box(e).right > width + 1 || box(e).left < -1)) {
      wrong.push('<' + e.tagName.toLowerCase() + '> leaves the window: ' + named(e));
    }
  }
  const apart = (elements, what) => {
    const found = elements.filter(seen).map(e => [e, box(e)]);
    found.forEach(([e, a], i) => found.slice(i + 1).forEach(([f, b]) => {
      if (overlap(a, b)) wrong.push(what + ' overlap: ' + named(e) + ' | ' + named(f));
    }));
  };
  const parts = [...document.body.children];
  apart(parts.filter(e => !e.matches('script, noscript, #js-plotly-tester')), 'parts of the page');
  for (const e of document.querySelectorAll('.panels')) apart([...e.children], 'charts');
  for (const e of document.querySelectorAll('.panel, figure, dl > div')) {
    apart([...e.children], 'parts of a chart');
  }
  for (const e of document.querySelectorAll('.colors')) apart([...e.children], 'a legend\'s entries');
  for (const plot of document.querySelectorAll('.plot')) {
    if (plot.closest('details:not([open])')) continue;
    const title = named(plot.parentElement), edge = box(plot);
    if (!plot.querySelector('.main-svg')) { wrong.push('a chart that is not drawn: ' + title); continue; }
    for (const t of plot.querySelectorAll('.xtick, .ytick, .legendtext, .xtitle')) {
      const b = box(t);
      if (seen(t) && (b.left < edge.left - 1 || b.right > edge.right + 1 || b.bottom > edge.bottom + 1)) {
        wrong.push('text is cut off in the chart ' + title + ': ' + named(t));
      }
    }
    apart([...plot.querySelectorAll('.ytick text')], 'numbers of the chart ' + title);
    const drawn = e => box(e).width > 0 || box(e).height > 0;
    const paths = [...plot.querySelectorAll('.trace path')];
    if (!paths.some(drawn)) wrong.push('a chart without data: ' + title);
  }
  for (const img of document.images) {
    if (!img.complete || !img.naturalWidth) wrong.push('a picture that does not load: ' + img.alt);
  }
  for (const td of document.querySelectorAll('td')) {
    if (!td.closest('details:not([open])') && td.scrollWidth > td.clientWidth + 1) {
      wrong.push('a cell is too narrow: ' + named(td));
    }
    if (seen(td) && td.clientWidth < 45 && /\S{4}/.test(td.textContent) && box(td).height > 120) {
      wrong.push('a cell has its letters below each other: ' + named(td));
    }
  }
  return [...new Set(wrong)];
}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check all pages; return the exit code."""
    arguments = _parser().parse_args(argv)
    missing = [page for page in arguments.pages if not page.is_file()]
    if missing:
        print(f"there is no such page: {', '.join(map(str, missing))}", file=sys.stderr)
        return 2
    why = unavailable()
    if why:
        print(why, file=sys.stderr)
        return 2
    bad = 0
    with browser() as chromium:
        for page in arguments.pages:
            problems = check(chromium, page, arguments.out)
            bad += bool(problems)
            print(f"{page}: {'ok' if not problems else f'{len(problems)} problems'}")
            for problem in problems:
                print(f"  {problem}")
    return 1 if bad else 0


def unavailable() -> str:
    """Return what is missing for a check; empty if nothing is."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "playwright is missing: pip install 'gfn-runner[browser]'"
    if _chromium() is None:
        return (
            "no Chromium was found: apt-get install chromium (Debian), or set CHROMIUM to its file"
        )
    return ""


def _chromium() -> str | None:
    given = os.environ.get("CHROMIUM")
    if given:
        return given if Path(given).is_file() else None
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Yield a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # Chromium runs as root only without its sandbox; the pages are our own.
        flags = ["--no-sandbox", "--disable-gpu"] if os.geteuid() == 0 else ["--disable-gpu"]
        chromium = play.chromium.launch(executable_path=_chromium(), args=flags)
        try:
            yield chromium
        finally:
            chromium.close()


def check(chromium: Any, page: Path, out: Path | None = None) -> list[str]:
    """Return all problems of a page, at each width.

    Args:
        chromium: browser from :func:`browser`.
        page: path of the HTML file.
        out: folder for a screenshot of the whole page at each width; ``None`` takes none.
    """
    wrong: list[str] = []
    own = page.resolve().as_uri()
    for width in WIDTHS:
        context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
        tab = context.new_page()
        found = _listen(tab, own)
        tab.goto(own)
        tab.wait_for_function(
            "!document.getElementById('plotly') || document.body.matches('.drawn')"
        )
        found += tab.evaluate(_PROBE)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            name = "-".join(page.resolve().with_suffix("").parts[-4:])
            tab.screenshot(path=out / f"{name}-{width}.png", full_page=True)
        wrong += [f"at width {width}: {problem}" for problem in found]
        context.close()
    return wrong


def _listen(tab: Any, own: str) -> list[str]:
    """Return a list that collects the page's requests for other resources and its errors."""
    found: list[str] = []

    def asked(request: Any) -> None:
        if request.url != own and not request.url.startswith("data:"):
            found.append(f"asks for {request.url}")

    def said(message: Any) -> None:
        if message.type == "error":
            found.append(f"console: {message.text}")

    tab.on("request", asked)
    tab.on("console", said)
    tab.on("pageerror", lambda error: found.append(f"script: {error}"))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="+", type=Path, help="HTML files")
    parser.add_argument("--out", type=Path, help="folder for screenshots")
    return parser


if __name__ == "__main__":
    prepare_output()
    raise SystemExit(main())
