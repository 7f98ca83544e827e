"""Tables of results and other data, rendered as Markdown or printed on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import rich.table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape

from gfn_runner.data.samples import ReferenceRow
from gfn_runner.data.task import Task
from gfn_runner.report.names import column_title, is_share

# Some of them are not printed in the paper: docs/paper_index.md gives the source of each.
PUBLISHED = "† the paper's numbers, or its published code's: of another model, on other questions"
_WIDEST = 40  # maximum characters of a column on the terminal


@dataclass(frozen=True)
class Code:
    """Lines of code in a table cell, shown verbatim."""

    lines: Sequence[str]


Cell = str | Code


@dataclass(frozen=True)
class Table:
    """Cells by row; if ``numeric``, all but the first column hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: bool = True

    def columns(self, kept: Iterable[int]) -> Table:
        """Return the table restricted to some columns."""
        places = list(kept)
        rows = [[row[at] for at in places] for row in self.rows]
        return Table([self.header[at] for at in places], rows, self.numeric)

    def without_empty(self) -> Table:
        """Return the table without columns whose cells are all empty."""
        kept = range(len(self.header))
        return self.columns([at for at in kept if any(row[at] for row in self.rows)])


# -- text output ------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Escape text from a file or model, so that Markdown shows it verbatim."""
    # An underscore within a word has no meaning in any Markdown dialect.
    return re.sub(r"[\\`*<\[]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def markdown(table: Table) -> str:
    """Render the table as Markdown, whatever its cells contain."""
    line = "|---" + ("|---:" if table.numeric else "|---") * (len(table.header) - 1) + "|"
    first, *rest = (f"| {' | '.join(map(_cell, own))} |" for own in (table.header, *table.rows))
    return "\n".join([first, line, *rest])


def _cell(cell: Cell) -> str:
    if isinstance(cell, Code):
        return "<br>".join(f"`{line.replace('|', chr(92) + '|')}`" for line in cell.lines)
    return "<br>".join(plain(line).replace("|", "\\|") for line in cell.strip().splitlines())


def print_table(console: Console, table: Table, title: str = "", caption: str = "") -> None:
    """Print a table; if it is too wide, split it into several that each repeat the first column."""
    rest = list(range(1, len(table.header)))
    while rest:
        n = len(rest)
        while n > 1 and not _fits(console, _printed(table, rest[:n])):
            n -= 1
        made = _printed(table, rest[:n])
        made.title = title or None
        rest = rest[n:]
        made.caption = caption if caption and not rest else None
        console.print(made, soft_wrap=False)


def _printed(table: Table, columns: Sequence[int]) -> rich.table.Table:
    made = rich.table.Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    for at in (0, *columns):
        # Break titles wherever possible, since numbers are narrow.
        title = re.sub(r",? |(?<=[._])(?=.)", "\n", table.header[at])
        justify: Literal["left", "right"] = "right" if at and table.numeric else "left"
        made.add_column(escape(title), justify=justify, overflow="fold", max_width=_WIDEST)
    for row in table.rows:
        if any(row[at] for at in columns):
            made.add_row(*(escape(str(row[at])) for at in (0, *columns)))
    return made


def _fits(console: Console, table: rich.table.Table) -> bool:
    """Return whether the table fits the console without wrapping."""
    unbroken = console.options.update(max_width=10_000)
    return table.__rich_measure__(console, unbroken).maximum <= console.width


# -- results ----------------------------------------------------------------------------------------


def result_table(
    headline: Sequence[str],
    metrics: Mapping[str, float],
    published: Sequence[ReferenceRow] = (),
    method: str = "this run",
) -> Table:
    """Tabulate a run and what it is compared with: headline metrics per evaluation set, with intervals.

    Args:
        metrics: flat mapping with row prefixes: ``final/``, ``base_<k>_shot/`` and so on.
        published: the paper's rows.
        method: label of the run's own row.
    """
    labels = row_labels(metrics, method)
    columns = columns_of(metrics, labels, headline)
    rows = [
        [label, *(metric_cell(metrics, prefix, name) for name in columns)]
        for prefix, label in labels.items()
    ]
    rows = [row for row in rows if any(row[1:])] + published_rows(published, columns)
    return Table(["", *map(column_title, columns)], rows)


def print_results(
    console: Console, task: Task, metrics: Mapping[str, float], method: str = "this run"
) -> None:
    """Print a run's results; see :func:`result_table`."""
    published = task.reference_rows()
    table = result_table(task.headline, metrics, published, method)
    caption = PUBLISHED if published else ""
    print_table(console, table, f"{task.name}; below, 95 % intervals", caption)


def published_rows(rows: Sequence[ReferenceRow], columns: Sequence[str]) -> list[list[str]]:
    """Return those of the paper's rows that have a value in at least one column."""
    found = [
        [
            f"† {row.label}",
            *(shown_number(c, row.values[c]) if c in row.values else "" for c in columns),
        ]
        for row in rows
    ]
    return [row for row in found if any(row[1:])]


def columns_of(metrics: Iterable[str], rows: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """Return ``<metric>/<evaluation set>`` of the given rows, in the order of the wanted metrics."""
    parts = [name.partition("/") for name in metrics]
    kept = set(rows)
    names = dict.fromkeys(name for row, _, name in parts if row in kept and "/" in name)
    return in_order(names, wanted)


def in_order(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the names ``<metric>/<evaluation set>`` whose metric is wanted, in the order of ``wanted``."""
    known = list(names)
    return [name for metric in wanted for name in known if name.partition("/")[0] == metric]


# Rows below the run's own, in table order; groups in the pattern are inserted into the label.
_ROWS = (
    (r"base_(\d+)_shot", "base model, {}-shot"),
    (r"base_at_T(\d+(?:\.\d+)?(?:e-?\d+)?)", "base model, T = {}"),
    (r"direct_(\d+)_shot", "base model at once, {}-shot"),
    (r"resampled", "exact, by resampling"),
    *(
        (decoder + times, label + compute)
        for decoder, label in (
            ("greedy", "greedy"),
            ("beam", "beam search"),
            ("diverse_beam", "diverse beam search"),
            ("sampling", "sampling"),
            ("tempered", "tempered sampling"),
            ("nucleus", "nucleus sampling"),
            ("top_k", "top-k sampling"),
        )
        for times, compute in (("", ""), (r"_x(\d+)", ", {} × compute"))
    ),
    (r"best_of_(\d+)", "best of {}"),
    (r"resampled_(\d+)", "resampled from {}"),
    (r"exact", "exact"),
)


def row_labels(metrics: Iterable[str], method: str = "this run") -> dict[str, str]:
    """Map each row's metric prefix to its label, in table order."""
    found = dict.fromkeys(name.partition("/")[0] for name in metrics)
    own = {"final": "E + M", "e_step": "E-step"} if "e_step" in found else {"final": method}
    kept = {prefix: label for prefix, label in own.items() if prefix in found}
    for pattern, label in _ROWS:
        matches = [match for prefix in found if (match := re.fullmatch(pattern, prefix))]
        for match in sorted(matches, key=lambda match: tuple(map(float, match.groups()))):
            kept[match[0]] = label.format(*match.groups())
    return kept


def shown_number(name: str, value: float) -> str:
    if not is_share(name):
        return f"{value:.3g}".replace("-", "−")
    # A rare failure must not round to none, at either end.
    if 0 < value < 0.001:
        return f"{100 * value:.2g}"
    if 0.9995 <= value < 1:
        return f"{100 - float(f'{100 * (1 - value):.2g}'):.8g}"
    return f"{100 * value:.1f}"


def hundredths(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def rounded(text: str) -> str:
    """Round a value, or the value at the end of an override, to four digits; a search draws sixteen."""
    found = re.search(r"(?:(?<==)|^)-?\d+\.\d+(e[-+]?\d+)?$", text)
    if found is None:
        return text
    short = f"{float(found[0]):.4g}"
    return text if float(short) == float(found[0]) else text[: found.start()] + short


def metric_cell(metrics: Mapping[str, float], row: str, name: str) -> str:
    """Format a value with its interval, if any, on the next line; empty if it was not measured."""
    if f"{row}/{name}" not in metrics:
        return ""
    metric, _, group = name.partition("/")
    low, high = (metrics.get(f"{row}/{metric}{end}/{group}") for end in ("_low", "_high"))
    shown = shown_number(name, metrics[f"{row}/{name}"])
    if low is None or high is None:
        return shown
    ends = (f"{100 * v:.0f}" if is_share(name) else shown_number(name, v) for v in (low, high))
    return f"{shown}\n{'–'.join(ends)}"
