"""The table at the end of a run: ours, the base model, the published numbers; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table

from gfn_runner.tasks.base import Task


def result_table(task: Task, metrics: Mapping[str, float]) -> Table:
    """Headline metrics per evaluation set.

    Args:
        task: names headline metrics and published rows.
        metrics: flat, with the prefixes ``final/``, ``e_step/`` (before the last M-step),
            ``base_<k>_shot/`` and ``direct_<k>_shot/`` (the base model answers at once).
    """
    prefixes = {"this run": "final"}
    if any(name.startswith("e_step/") for name in metrics):
        prefixes = {"E + M": "final", "E-step": "e_step"}
    shots = sorted({int(n.split("_")[1]) for n in metrics if n.startswith("base_")})
    prefixes |= {f"base model, {k}-shot": f"base_{k}_shot" for k in shots}
    shots = sorted({int(n.split("_")[1]) for n in metrics if n.startswith("direct_")})
    prefixes |= {f"base model at once, {k}-shot": f"direct_{k}_shot" for k in shots}
    names = [
        name.removeprefix("final/")
        for headline in task.headline
        for name in metrics
        if name.startswith(f"final/{headline}/")
    ]
    shares = any(map(_is_share, names))
    table = Table(
        title=task.name + (": accuracy in %, below it the 95 % interval" if shares else ""),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in names:
        metric, _, group = name.partition("/")
        header = f"{metric.removesuffix('_accuracy')} {group}".replace("_", " ")
        table.add_column(header.replace(" ", "\n"), justify="right", no_wrap=True)
    for number, (label, prefix) in enumerate(prefixes.items()):
        cells = (_cell(metrics, f"{prefix}/{name}") for name in names)
        table.add_row(label, *cells, style="bold" if number == 0 else "")
    table.add_section()
    for row in task.reference_rows():
        cells = (_number(name, row.values[name]) if name in row.values else "" for name in names)
        table.add_row(f"† {row.label}", *cells, style="dim")
    if task.reference_rows():
        table.caption = "† printed in the paper: a different model, on other questions"
    return table


def _is_share(name: str) -> bool:
    """Whether a metric is a share in 0..1, to be read in %; others keep their unit."""
    return name.partition("/")[0].endswith("accuracy")


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if _is_share(name) else f"{value:.3g}"


def _cell(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    *prefix, metric, group = name.split("/")
    ends = [metrics.get("/".join([*prefix, f"{metric}_{end}", group])) for end in ("low", "high")]
    own = f"{metric}/{group}"
    shown = _number(own, metrics[name])
    if ends[0] is None or ends[1] is None:
        return shown
    digits = [
        f"{100 * end:.0f}" if _is_share(own) else f"{end:.3g}" for end in ends if end is not None
    ]
    return f"{shown}\n{'–'.join(digits)}"
