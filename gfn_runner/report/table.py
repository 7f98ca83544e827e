"""The table at the end of a run: ours, the base model, the published numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from gfn_runner.data.task import Task
from gfn_runner.report.names import is_share, name_of

WIDTH = 80
# Not all of them are printed in the paper: docs/paper_index.md says where each comes from.
PUBLISHED = "† the paper's numbers, or its published code's: of another model, on other questions"


def result_table(
    task: Task, metrics: Mapping[str, float], method: str = "this run"
) -> Table | Group:
    """Headline metrics per evaluation set: one table, or one a set where that would be too wide.

    Args:
        metrics: flat, with a row's prefix: ``final/``, ``base_<k>_shot/`` and so on.
        method: what the run's own row is called.
    """
    names = columns_of(metrics, [next(iter(row_labels(metrics)), "final")], task.headline)
    groups = list(dict.fromkeys(name.partition("/")[2] for name in names))
    widest = max(map(len, row_labels(metrics, method).values()), default=0)
    needed = widest + sum(1 + max(map(len, _header(name).split())) for name in names)
    if needed <= WIDTH or len(groups) < 2:
        return _table(task, metrics, names, task.name, method)
    own = {group: [name for name in names if name.endswith(f"/{group}")] for group in groups}
    return Group(*(_table(task, metrics, own[g], f"{task.name}, {g}", method) for g in groups))


def columns_of(metrics: Iterable[str], rows: Iterable[str], wanted: Sequence[str]) -> list[str]:
    """``<metric>/<evaluation set>`` of some rows, in the order of the metrics that are wanted."""
    parts = [name.partition("/") for name in metrics]
    kept = set(rows)
    names = dict.fromkeys(name for row, _, name in parts if row in kept and "/" in name)
    return in_order(names, wanted)


def in_order(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Those names of ``<metric>/<evaluation set>`` whose metric is wanted, in that order."""
    known = list(names)
    return [name for metric in wanted for name in known if name.partition("/")[0] == metric]


def _table(
    task: Task, metrics: Mapping[str, float], names: Sequence[str], title: str, method: str
) -> Table:
    shares = any(map(is_share, names))
    intervals = any(f"final/{n.replace('/', '_low/', 1)}" in metrics for n in names)
    explained = ": shares in %" if shares else ""
    explained += ", below them the 95 % interval" if shares and intervals else ""
    table = Table(title=title + explained, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(_header(name).replace(" ", "\n"), justify="right", no_wrap=True)
    for number, (prefix, label) in enumerate(row_labels(metrics, method).items()):
        cells = (metric_cell(metrics, prefix, name) for name in names)
        table.add_row(label, *cells, style="bold" if number == 0 else "")
    table.add_section()
    for row in task.reference_rows():
        cells = (
            shown_number(name, row.values[name]) if name in row.values else "" for name in names
        )
        table.add_row(f"† {row.label}", *cells, style="dim")
    if task.reference_rows():
        table.caption = PUBLISHED
    return table


def _header(name: str) -> str:
    metric, _, group = name.partition("/")
    known = name_of(metric)
    short = known.brief or metric.removesuffix("_accuracy").removesuffix("_share")
    unit = " (nats)" if known.unit == "nats" else ""
    return f"{short}{unit} {group}".replace("_", " ").replace("p LM", "p_LM")


# Rows below the run's own, in the order of the table; what the brackets match stands in the label.
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
    """Prefix of each row's metrics, in the order of the table, to what the row is called."""
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
    # A rare failure must not look like none, on either side.
    if 0 < value < 0.001:
        return f"{100 * value:.2g}"
    if 0.9995 <= value < 1:
        return f"{100 - float(f'{100 * (1 - value):.2g}'):.8g}"
    return f"{100 * value:.1f}"


def hundredths(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def rounded(text: str) -> str:
    """A value, or an override line that ends in one, to four digits: a search draws sixteen."""
    found = re.search(r"(?:(?<==)|^)-?\d+\.\d+(e[-+]?\d+)?$", text)
    if found is None:
        return text
    short = f"{float(found[0]):.4g}"
    return text if float(short) == float(found[0]) else text[: found.start()] + short


def metric_cell(metrics: Mapping[str, float], row: str, name: str) -> str:
    """A value, and below it its interval where there is one; empty where it was not measured."""
    if f"{row}/{name}" not in metrics:
        return ""
    metric, _, group = name.partition("/")
    low, high = (metrics.get(f"{row}/{metric}{end}/{group}") for end in ("_low", "_high"))
    shown = shown_number(name, metrics[f"{row}/{name}"])
    if low is None or high is None:
        return shown
    ends = (f"{100 * v:.0f}" if is_share(name) else shown_number(name, v) for v in (low, high))
    return f"{shown}\n{'–'.join(ends)}"
