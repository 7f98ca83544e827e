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


_DECODERS = {
    "greedy": "greedy",
    "beam": "beam search",
    "diverse_beam": "diverse beam search",
    "sampling": "sampling",
    "tempered": "tempered sampling",
    "nucleus": "nucleus sampling",
    "top_k": "top-k sampling",
}


def row_labels(metrics: Mapping[str, float], method: str = "this run") -> dict[str, str]:
    """Prefix of each row's metrics, in the order of the table, to what the row is called."""
    found = dict.fromkeys(name.partition("/")[0] for name in metrics)
    labels = {"final": method}
    if "e_step" in found:
        labels = {"final": "E + M", "e_step": "E-step"}
    kept = {prefix: label for prefix, label in labels.items() if prefix in found}
    shots = sorted(int(m[1]) for p in found if (m := re.fullmatch(r"base_(\d+)_shot", p)))
    kept |= {f"base_{k}_shot": f"base model, {k}-shot" for k in shots}
    for prefix in sorted(found):
        if at := re.fullmatch(r"base_at_T(.+)", prefix):
            kept[prefix] = f"base model, T = {at[1]}"
        elif at := re.fullmatch(r"direct_(\d+)_shot", prefix):
            kept[prefix] = f"base model at once, {at[1]}-shot"
    if "resampled" in found:
        kept["resampled"] = "exact, by resampling"
    for decoder, label in _DECODERS.items():
        for prefix in found:
            if at := re.fullmatch(rf"{decoder}(?:_x(\d+))?", prefix):
                kept[prefix] = f"{label}, {at[1]} × compute" if at[1] else label
    for kind, label in (("best_of", "best of"), ("resampled", "resampled from")):
        numbers = sorted(int(m[1]) for p in found if (m := re.fullmatch(rf"{kind}_(\d+)", p)))
        kept |= {f"{kind}_{n}": f"{label} {n}" for n in numbers}
    if "exact" in found:
        kept["exact"] = "exact"
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
    return re.sub(r"(?:(?<==)|^)-?\d+\.\d+(e[-+]?\d+)?$", _four_digits, text)


def _four_digits(found: re.Match[str]) -> str:
    short = f"{float(found[0]):.4g}"
    return found[0] if float(short) == float(found[0]) else short


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
