"""PNG figures of one run, drawn from the files in its folder; used in ``figures/``, the docs and W&B."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gfn_runner.report.figure_layout import panels
from gfn_runner.report.history import History
from gfn_runner.report.method_figures import histograms, likelihood_against_diversity
from gfn_runner.report.methods import Method
from gfn_runner.report.names import readable
from gfn_runner.report.panels import LISTED, Panel
from gfn_runner.report.plots import Trace, run_plot
from gfn_runner.report.runs import Run
from gfn_runner.report.summary import Section
from gfn_runner.report.table import row_labels
from gfn_runner.runtime.json_lines import read_lines


def draw_all(folder: Path, metrics: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw every figure for which the run folder has data, into ``figures/``.

    Args:
        metrics: final metrics of the run; ``None`` reads them from its ``metrics.json``.

    Returns:
        The files written: any of ``loss_and_reward``, ``phi_spread``, ``accuracy``, ``log_reward``,
        ``histogram``, ``likelihood_diversity`` and ``shares``.
    """
    final: Any = metrics or json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    run = Run(folder, {}, {name: value for name, value in final.items() if value is not None})
    drawn = {
        "loss_and_reward": _course(
            run.history, "train/loss", "train/log_reward", "train/elbo", "train/reward_temperature"
        ),
        "phi_spread": _course(run.history, "train/phi_spread", "train/phi_spread_terminal"),
        "accuracy": _accuracy(run),
        "log_reward": _log_reward(read_lines(folder / "demonstrations.jsonl")),
        "histogram": histograms(_rows(run, ("final", "base_0_shot"))),
        "likelihood_diversity": likelihood_against_diversity(_rows(run)),
        "shares": _share_bars(run.metrics),
    }
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    written = []
    for name, figure in drawn.items():
        if isinstance(figure, Figure):
            path = target / f"{name}.png"
            figure.savefig(path, dpi=120)
            plt.close(figure)
            written.append(path)
    return written


def _rows(run: Run, only: Sequence[str] = ()) -> Section:
    """Wrap the table rows of one run as methods, for figures that compare several."""
    labels = row_labels(run.metrics)
    methods = [Method(labels[row], row, (run,)) for row in labels if not only or row in only]
    return Section("run", tuple(methods), (), (), (), ())


def _course(history: History, *metrics: str) -> Figure | None:
    """Draw the run page's plots whose first metric is one of these, side by side."""
    made = [run_plot(LISTED[metric], history) for metric in metrics]
    plots = [plot for plot in made if plot is not None]
    if not plots:
        return None
    figure, all_axes = panels(len(plots), width=5.0, height=3.8)
    for axes, plot in zip(all_axes, plots, strict=True):
        _draw(axes, plot.figure["data"])
        axes.set_title(plot.title, fontsize=10)
        y_axis = plot.figure["layout"].get("yaxis", {})
        if y_axis.get("type") == "log":
            axes.set(yscale="log", ylim=[10**end for end in y_axis["range"]])
    return figure


_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def _draw(axes: Axes, traces: Sequence[Trace]) -> None:
    """Draw Plotly traces over optimizer steps with Matplotlib."""
    for own in traces:
        style = {"markersize": own.get("marker", {}).get("size", 4)}
        style["marker"] = "o" if "markers" in own["mode"] else ""
        dash = _DASHES[own.get("line", {}).get("dash", "solid")] if "lines" in own["mode"] else ""
        color = (own["line"] if "line" in own else own["marker"])["color"]
        label = own["name"] if own.get("showlegend", True) else None
        axes.plot(own["x"], own["y"], linestyle=dash, color=color, label=label, **style)
    low, high = axes.get_xlim()
    if high - low < 1:  # a single step
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, handlelength=4)


def _accuracy(run: Run) -> Figure | None:
    key = "final/vote_accuracy/"
    groups = [name.removeprefix(key) for name in run.metrics if name.startswith(key)]
    if not groups:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    labels = ("vote", "single")
    panel = Panel(("eval/vote_accuracy/*", "eval/single_accuracy/*"), labels=labels)
    made = run_plot(panel, run.history)
    if made is not None:
        _draw(left, made.figure["data"])
    left.set(ylabel="accuracy (%)", ylim=(-2, 102))
    metrics = [f"{kind}_accuracy/{group}" for group in groups for kind in labels]
    ticks = [f"{readable(group)},\n{kind}" for group in groups for kind in labels]
    _bars(right, run.metrics, metrics, ticks)
    right.set(ylabel="accuracy, 95 % interval")
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower right", fontsize=7, ncols=3
    )
    return figure


def _bars(
    axes: Axes, final: Mapping[str, float], names: Sequence[str], ticks: Sequence[str]
) -> None:
    """Draw a group of bars per metric, one bar per row of the run's table, with its interval if known."""
    labels = row_labels(final)
    width = 0.8 / len(labels)
    for number, (row, label) in enumerate(labels.items()):
        places = [at + (number - (len(labels) - 1) / 2) * width for at in range(len(names))]
        heights = [final.get(f"{row}/{name}", math.nan) for name in names]  # missing: no bar
        ends = [
            [final.get(f"{row}/{name.replace('/', f'{end}/', 1)}", height) for name, height in own]
            for end, own in ((end, zip(names, heights, strict=True)) for end in ("_low", "_high"))
        ]
        errors = np.abs(np.array(ends) - np.array(heights))
        shown = errors if np.nansum(errors) else None
        axes.bar(places, heights, width, yerr=shown, label=label, capsize=2)
    axes.set_xticks(range(len(names)), ticks, fontsize=7)
    axes.set_ylim(0, 1.05)
    axes.grid(alpha=0.3, axis="y")


def _log_reward(records: Sequence[dict[str, Any]]) -> Figure | None:
    """Plot the distribution of log R of samples against that of demonstrations for the same conditions."""
    if not records:
        return None
    known = [value for record in records for value in record["demonstration_log_reward"]]
    sampled = [value for record in records for value in record["log_reward"]]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    bins = np.linspace(min(known + sampled) - 0.5, max(known + sampled) + 0.5, 41).tolist()
    for label, values in (("demonstrations", known), ("samples at temperature 1", sampled)):
        # Plot shares, since there are more samples than demonstrations.
        weights = [1 / len(values)] * len(values)
        axes.hist(values, bins=bins, weights=weights, alpha=0.6, label=f"{label} ({len(values)})")
    axes.set(xlabel="log R (nats)", ylabel="share", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _share_bars(final: Mapping[str, float]) -> Figure | None:
    """Draw the shares that a task measures, one group of bars per share.

    The share of invalid samples is left out: it is not an objective of the task, and the histogram shows it.
    """
    names = [name.removeprefix("final/") for name in final if name.startswith("final/")]
    names = [name for name in names if name.partition("/")[0].endswith("_share")]
    names = [name for name in names if not name.startswith("invalid_share/")]
    if not names:
        return None
    figure, axes = plt.subplots(figsize=(max(5.0, 1.6 * len(names)), 3.8), layout="constrained")
    _bars(axes, final, names, [readable(name.replace("_share/", "\n")) for name in names])
    axes.set_ylabel("share")
    # Placed below the axes, since bars of any height leave no free corner.
    figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    return figure
