"""PNG figures that compare methods across runs and seeds.

Each function returns a figure, or a sentence that says which data is missing. A method keeps its color in
all figures of a section. Error bars are standard errors over seeds; samples are from each first seed.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfn_runner.report.equal_compute import (
    chosen_from,
    groups_of,
    metric_of_one,
    policies,
    ways_of_choosing,
)
from gfn_runner.report.figure_layout import color_of, legend, panels
from gfn_runner.report.methods import Method
from gfn_runner.report.names import column_title, is_share, readable
from gfn_runner.report.page import Picture
from gfn_runner.report.posterior_figures import calibration, evidence
from gfn_runner.report.summary import Section, standard_error
from gfn_runner.report.table import shown_number

_CLOCKS = {
    "train/seconds": "minutes of training",
    "train/cpu_seconds": "minutes of training, CPU time",
}
_MEAN_AND_BEST = {"log_likelihood": "o", "log_likelihood_max": "^"}


def likelihood_against_diversity(section: Section) -> Figure | str:
    """Plot mean and best log-likelihood per condition against diversity; one mark per method."""
    groups = [
        group
        for group in groups_of(section, "diversity")
        if any(
            {f"log_likelihood/{group}", f"diversity/{group}"} <= {*m.names} for m in section.methods
        )
    ]
    if not groups:
        return "no method has both diversity and log_likelihood of an evaluation set"
    figure, all_axes = panels(len(groups), width=5.5, height=4.2)
    for axes, group in zip(all_axes, groups, strict=True):
        for method in (m for m in section.methods if chosen_from(m) is None):
            for name, marker in _MEAN_AND_BEST.items():
                x = method.values(f"diversity/{group}")
                y = method.values(f"{name}/{group}")
                if x and y:
                    axes.errorbar(
                        fmean(x), fmean(y), standard_error(y), standard_error(x), fmt=marker,
                        color=color_of(section, method), capsize=2,
                        label=method.label if marker == "o" else None,
                    )  # fmt: skip
        for name, marker in _MEAN_AND_BEST.items():
            _ways(axes, section, f"diversity/{group}", f"{name}/{group}", marker)
        axes.set(xlabel="diversity: 1 − mean pairwise cosine", ylabel="log p_LM (nats)")
        axes.set_title(f"{readable(group)}: mean (●) and best (▲) of a condition", fontsize=9)
        axes.grid(alpha=0.3)
    legend(figure, all_axes)
    return figure


def _ways(axes: Axes, section: Section, across: str, up: str, marker: str) -> None:
    """Draw a grey line for each way of picking one of n base-model strings, with n at its ends."""
    for way, methods in ways_of_choosing(section, across).items():
        by_n = {n: method for n, method in methods.items() if method.values(up)}
        if not by_n:
            continue
        numbers = list(by_n)
        x, y = ([fmean(m.values(name)) for m in by_n.values()] for name in (across, up))
        label = f"{way}, out of {numbers[0]} to {numbers[-1]} strings" if marker == "o" else None
        axes.plot(
            x, y, marker, linestyle="-", color="grey", markersize=4, linewidth=0.8, label=label
        )
        for end in {0, len(numbers) - 1}:
            axes.annotate(
                str(numbers[end]), (x[end], y[end]), xytext=(4, -9), textcoords="offset points",
                fontsize=7, color="grey",
            )  # fmt: skip


def histograms(section: Section) -> Figure | str:
    """Plot how often each method drew each value of a table, against the target distribution."""
    samples = [(m, m.runs[0].samples(m.row)) for m in section.methods]
    shown = [(m, records[0]) for m, records in samples if records and "target" in records[0]]
    if not shown:
        return "no samples of a table of values (a record with target)"
    figure, all_axes = plt.subplots(
        len(shown), 1, figsize=(10, 2.6 * len(shown)), layout="constrained", squeeze=False
    )
    for axes, (method, record) in zip(all_axes[:, 0], shown, strict=True):
        _value_bars(axes, method.label, record, color_of(section, method))
    return figure


def _value_bars(axes: Axes, label: str, record: Mapping[str, Any], color: str) -> None:
    """Draw the share of each value among a condition's samples as bars, and the target as steps."""
    target = record["target"]
    counts = Counter(record["singles"])
    n, places = sum(counts.values()), range(len(target))
    axes.bar(places, [counts[value] / n for value in target], width=0.9, color=color)
    axes.step(places, list(target.values()), "k--", where="mid", linewidth=1.0, label="target")
    other = 1 - sum(counts[value] for value in target) / n
    invalid = shown_number("invalid_share", max(0.0, other))
    title = f"{label}: {n} samples, {invalid} % of them invalid"
    axes.set_title(textwrap.fill(title, 110), fontsize=9)
    step = max(1, len(target) // 20)
    names = [value.strip() for value in target]
    axes.set_xticks(list(places)[::step], names[::step], fontsize=7)
    axes.set_ylabel("share")
    axes.legend(fontsize=7)


def compute(section: Section) -> Figure | str:
    """Plot the headline metric against training time and, below, against strings drawn per question."""
    metric = section.headline[0] if section.headline else ""
    groups = groups_of(section, metric)
    trained = [m for m in section.methods if m.is_trained and m.row == "final"]
    clock = _clock(trained)
    curves = {m: _curves(m, metric, clock) for m in trained}
    chosen = any(chosen_from(m) is not None for m in section.methods)
    kinds = [*["training"] * any(curves.values()), *["test"] * chosen]
    if not groups or not kinds:
        return "no intermediate evaluations in metrics.jsonl, and no rows with several draws per question"
    size = (4.6 * len(groups), 3.7 * len(kinds))
    figure, grid = plt.subplots(
        len(kinds), len(groups), figsize=size, layout="constrained", squeeze=False
    )
    for kind, line in zip(kinds, grid, strict=True):
        for axes, group in zip(line, groups, strict=True):
            if kind == "test":
                _test_time(axes, section, group)
                continue
            for method, own in curves.items():
                x, y, error = own.get(group, ((), (), ()))
                color = color_of(section, method)
                axes.errorbar(x, y, error, color=color, marker=".", capsize=2, label=method.label)
            axes.set(xlabel=_CLOCKS[clock], ylabel=_axis(metric, group))
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        if is_share(metric):
            axes.set_ylim(-0.02, 1.02)
    legend(figure, list(grid.flat))
    return figure


def _axis(metric: str, group: str) -> str:
    return column_title(f"{metric}/{group}").replace(" (%)", "")


FIGURES: Mapping[str, tuple[str, Callable[[Section], Figure | str]]] = {
    "likelihood_diversity": (
        "Log-likelihood under the base model against diversity; bars: standard errors over seeds",
        likelihood_against_diversity,
    ),
    "histogram": ("Share of each value among the samples of the first seed", histograms),
    "calibration": (
        "Calibration of the policy: log q + log Z against log R/T of single samples, first seed; log Z "
        "exact or the largest estimate of any method at hand",
        calibration,
    ),
    "evidence": ("Estimates of log Z against the exact value, first seed", evidence),
    "compute": (
        "The first headline metric against training (intermediate evaluations have fewer conditions than the "
        "final one; time spent earlier on what a method learns from is not counted), and against strings "
        "drawn per question",
        compute,
    ),
}


def draw(section: Section, folder: Path) -> tuple[list[Picture], list[str]]:
    """Draw all figures for which there is data, as PNG files in ``folder``.

    Returns:
        The figures, and the name of each omitted figure with the reason.
    """
    written, missing = [], []
    for name, (caption, function) in FIGURES.items():
        made = function(section)
        if isinstance(made, str):
            missing.append(f"{name.replace('_', ' ')}: {made}.")
            continue
        path = folder / f"{section.name}_{name}.png"
        made.savefig(path, dpi=120)
        plt.close(made)
        written.append(Picture(path, f"{caption}."))
    return written, missing


Curve = tuple[list[float], list[float], list[float]]


def _curves(method: Method, metric: str, clock: str) -> dict[str, Curve]:
    """Return, per evaluation set, training minutes, means over seeds and standard errors; final last."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for run in method.runs:
        history = run.history
        seconds = history.series.get(clock, {})
        # If not every step has a record, earlier unrecorded steps are assumed to take as long.
        before = dict(zip(seconds, [0, *seconds], strict=False))
        kinds = [f"{kind}/{metric}" for kind in ("eval", "final")]
        for group in dict.fromkeys(group for kind in kinds for group in history.sets(kind)):
            # At the last step the final evaluation takes precedence, since it has more conditions.
            on_the_way, last = (history.series.get(f"{kind}/{group}", {}) for kind in kinds)
            for step, value in (on_the_way | last).items():
                minutes = sum((s - before[s]) * t for s, t in seconds.items() if s <= step) / 60
                found.setdefault(group, {}).setdefault(step, []).append((minutes, value))
    curves = {}
    for group, steps in found.items():
        if len(steps) > 1:
            ordered = [steps[step] for step in sorted(steps)]
            curves[group] = (
                [fmean(x for x, _ in own) for own in ordered],
                [fmean(y for _, y in own) for own in ordered],
                [standard_error([y for _, y in own]) for own in ordered],
            )
    return curves


def _clock(methods: Sequence[Method]) -> str:
    """Return the name of the scalar that measures the cost of a step.

    On a CPU this is CPU time, which other load on the machine does not inflate; if a run used a GPU or did
    not record CPU time, it is wall-clock time.
    """
    runs = [run for method in methods for run in method.runs]
    known = all(run.on_cpu and "train/cpu_seconds" in run.metrics for run in runs)
    return "train/cpu_seconds" if known else "train/seconds"


def _test_time(axes: Axes, section: Section, group: str) -> None:
    """Plot a metric of single samples against the number of strings drawn for each of them."""
    metric = metric_of_one(section)
    for point in policies(section, group):
        marker = "*" if point.n == 1 else "P"
        color = color_of(section, point.method)
        axes.plot(point.n, point.mean, marker, color=color, label=point.label)
    column = f"{metric}/{group}"
    for number, (label, by_n) in enumerate(ways_of_choosing(section, column).items()):
        values = [method.values(column) for method in by_n.values()]
        axes.errorbar(
            list(by_n), list(map(fmean, values)), list(map(standard_error, values)),
            marker="sDo"[number % 3], linestyle=("-", "--", ":")[number % 3], color="grey", capsize=2,
            label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(xlabel="strings drawn per question", ylabel=_axis(metric, group))
