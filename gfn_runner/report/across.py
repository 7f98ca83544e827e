"""Figures that set methods beside each other, over runs and seeds; runs no model.

Each function gives a figure, or a sentence on which data it lacks. A method has one colour in all figures
of a section. Error bars are standard errors over seeds; samples are those of each method's first seed.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gfn_runner.metrics.distribution import importance_bound, mean_phi
from gfn_runner.report.comparison import value_bars
from gfn_runner.report.equal_compute import chosen_from, drawn, groups_of, metric_of_one, policies
from gfn_runner.report.methods import Method
from gfn_runner.report.names import column_title, is_share
from gfn_runner.report.runs import Run
from gfn_runner.report.summary import Section, standard_error
from gfn_runner.runtime.json_lines import read_metrics

_MOST_DOTS = 3000
_CLOCKS: Mapping[str | None, str] = {
    "train/seconds": "minutes of training",
    "train/cpu_seconds": "minutes of training, CPU time",
}
_MEAN_AND_BEST = {"log_likelihood": "o", "log_likelihood_max": "^"}


def likelihood_against_diversity(section: Section) -> Figure | str:
    """Mean and best log-likelihood of a condition against diversity; one mark a method."""
    groups = [
        group
        for group in groups_of(section, "diversity")
        if any(_has(m, f"log_likelihood/{group}", f"diversity/{group}") for m in section.methods)
    ]
    if not groups:
        return "no method has both diversity and log_likelihood of an evaluation set"
    figure, all_axes = _panels(len(groups), width=5.5, height=4.2)
    for axes, group in zip(all_axes, groups, strict=True):
        for method in (m for m in section.methods if chosen_from(m) is None):
            for name, marker in _MEAN_AND_BEST.items():
                x = method.values(f"diversity/{group}")
                y = method.values(f"{name}/{group}")
                if x and y:
                    axes.errorbar(
                        fmean(x), fmean(y), standard_error(y), standard_error(x), fmt=marker,
                        color=_color(section, method), capsize=2,
                        label=method.label if marker == "o" else None,
                    )  # fmt: skip
        for name, marker in _MEAN_AND_BEST.items():
            _ways(axes, section, f"diversity/{group}", f"{name}/{group}", marker)
        axes.set(xlabel="diversity: 1 − mean pairwise cosine", ylabel="log p_LM (nats)")
        axes.set_title(f"{_spoken(group)}: mean (●) and best (▲) of a condition", fontsize=9)
        axes.grid(alpha=0.3)
    _legend(figure, all_axes)
    return figure


def _ways(axes: Axes, section: Section, across: str, up: str, marker: str) -> None:
    """Strings chosen out of n of the base model: a grey line a way of choosing, n at its ends."""
    ways: dict[str, list[tuple[int, float, float]]] = {}
    for method in section.methods:
        own_x, own_y, chosen = method.values(across), method.values(up), chosen_from(method)
        if own_x and own_y and chosen:
            ways.setdefault(chosen[0], []).append((chosen[1], fmean(own_x), fmean(own_y)))
    for way, points in ways.items():
        numbers, x, y = zip(*sorted(points), strict=True)
        label = f"{way.replace('_', ' ')}, out of {numbers[0]} to {numbers[-1]} strings"
        axes.plot(
            x, y, marker, linestyle="-", color="grey", markersize=4, linewidth=0.8,
            label=label if marker == "o" else None,
        )  # fmt: skip
        for end in {0, len(numbers) - 1}:
            axes.annotate(
                str(numbers[end]), (x[end], y[end]), xytext=(4, -9), textcoords="offset points",
                fontsize=7, color="grey",
            )  # fmt: skip


def histograms(section: Section) -> Figure | str:
    """How often each value of a table was drawn, per method, against the target."""
    drawn = [(m, m.runs[0].samples(m.row)) for m in section.methods]
    shown = [(m, records[0]) for m, records in drawn if records and "target" in records[0]]
    if not shown:
        return "no samples of a table of values (a record with target)"
    figure, all_axes = plt.subplots(
        len(shown), 1, figsize=(10, 2.6 * len(shown)), layout="constrained", squeeze=False
    )
    for axes, (method, record) in zip(all_axes[:, 0], shown, strict=True):
        value_bars(axes, method.label, record, _color(section, method))
    return figure


def calibration(section: Section) -> Figure | str:
    """log q + log Z of single samples against log R/T: on the identity line where the policy is exact.

    log Z of a condition is exact where all of its strings are listed; else the largest of the
    importance-weighted estimates at hand, of this method's samples and of the others': the estimates of
    one that never draws some strings lack these, and with its own alone a policy that always writes the
    same string would lie on the line.
    """
    known = _log_z(section)
    dots = [(m, _calibrated(m.runs[0], m.row, known)) for m in section.methods if m.is_trained]
    shown = [(method, own) for method, own in dots if own]
    if not shown:
        return "no trained method left single samples with both log R and log q"
    figure, all_axes = _panels(len(shown), width=4.4, height=4.4)
    for axes, (method, own) in zip(all_axes, shown, strict=True):
        x, y = zip(*own, strict=True)
        axes.plot(x, y, ".", color=_color(section, method), markersize=3, alpha=0.5)
        axes.axline((fmean(x), fmean(x)), slope=1, color="k", linestyle="--", linewidth=0.8)
        _same_scales(axes, (*x, *y))
        axes.set(xlabel="log R / T (nats)", ylabel="log q + log Z (nats)")
        title = f"{method.label}: {len(own)} different samples"
        axes.set_title(textwrap.fill(title, 48), fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def evidence(section: Section) -> Figure | str:
    """Estimates of log Z of each condition against the exact value, where all strings can be listed."""
    shown = [(m, list(_evidence(m.runs[0], m.row))) for m in section.methods if m.is_trained]
    shown = [(method, points) for method, points in shown if points]
    if not shown:
        return "no trained method's samples hold the log R of all strings (support_log_reward)"
    figure, axes = plt.subplots(figsize=(6, 4.6), layout="constrained")
    for method, points in shown:
        exact, mean, bound = zip(*points, strict=True)
        color = _color(section, method)
        axes.plot(exact, mean, "o", color=color, label=method.label)
        axes.plot(exact, bound, "^", color=color, fillstyle="none")
    axes.set_title("mean φ (●) and importance-weighted bound (△)", fontsize=9)
    # One condition alone, or many of one log Z, are a column of dots: as wide as it is high.
    _same_scales(axes, [value for _, points in shown for own in points for value in own])
    at = shown[0][1][0][0]
    axes.axline((at, at), slope=1, color="k", linestyle="--", linewidth=0.8)
    axes.set(xlabel="exact log Z (nats)", ylabel="estimate (nats)")
    axes.grid(alpha=0.3)
    _legend(figure, [axes])
    return figure


def _same_scales(axes: Axes, values: Sequence[float]) -> None:
    """Both axes of one range, so that the line of equal values is at 45°."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.5
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))  # few enough for "−17.25" beside each other


def compute(section: Section) -> Figure | str:
    """The headline metric against training; below, against the strings that are drawn per question."""
    metric = section.headline[0] if section.headline else ""
    groups = groups_of(section, metric)
    trained = [m for m in section.methods if m.is_trained and m.row == "final"]
    # Baselines draw as they like: only time is common to all of them.
    clock = _clock(trained) if any(m.runs[0].baseline for m in trained) else None
    curves = {m: _curves(m, metric, clock) for m in trained}
    chosen = any(chosen_from(m) is not None for m in section.methods)
    if not groups or not (any(curves.values()) or chosen):
        return "no evaluations on the way in metrics.jsonl, and no rows of several draws a question"
    rows = int(any(curves.values())) + chosen
    figure, grid = plt.subplots(
        rows,
        len(groups),
        figsize=(4.6 * len(groups), 3.7 * rows),
        layout="constrained",
        squeeze=False,
    )
    if any(curves.values()):
        for axes, group in zip(grid[0], groups, strict=True):
            for method, own in curves.items():
                x, y, error = own.get(group, ((), (), ()))
                color = _color(section, method)
                axes.errorbar(x, y, error, color=color, marker=".", capsize=2, label=method.label)
            axes.set(
                xlabel=_CLOCKS.get(clock, "strings trained on"),
                ylabel=column_title(f"{metric}/{group}").replace(" (%)", ""),
            )
    if chosen:
        for axes, group in zip(grid[-1], groups, strict=True):
            _test_time(axes, section, group)
    for axes in grid.flat:
        axes.grid(alpha=0.3)
        if is_share(metric):
            axes.set_ylim(-0.02, 1.02)
    _legend(figure, list(grid.flat))
    return figure


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
        "The first headline metric against training (evaluations on the way have fewer conditions than "
        "the last one; what a method learns from was drawn or trained before, which is not counted), and "
        "against strings drawn per question",
        compute,
    ),
}


def draw(section: Section, folder: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    """Draw what there is data for.

    Returns:
        Files with their captions, and for each figure left out its name and the reason.
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
        written.append((path, f"{caption}."))
    return written, missing


def _has(method: Method, *names: str) -> bool:
    return all(method.values(name) for name in names)


def _spoken(group: str) -> str:
    return group.replace("_", " ")


def _color(section: Section, method: Method) -> str:
    # Strings chosen out of several are grey lines. Trained methods first: where colours run out, these
    # keep theirs.
    if chosen_from(method) is not None:
        return "grey"
    own = [m for m in section.methods if chosen_from(m) is None]
    at = sorted(own, key=lambda m: not m.is_trained).index(method)
    if len(own) <= 10:
        return f"C{at}"
    # The colours of tab20 come in pairs: all dark ones first.
    return to_hex(plt.get_cmap("tab20")((2 * at + at // 10 % 2) % 20))


def _panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(n, 3)
    rows = math.ceil(n / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:n])


def _legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One legend below all panels: labels may be long."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        characters = int(17 * figure.get_figwidth()) - 8
        columns = 2 if 2 * (max(map(len, found)) + 8) < characters else 1
        labels = [textwrap.fill(label, characters) for label in found]
        # The legend gets room of its own, so that it takes none from the panels.
        lines = max(
            sum(label.count("\n") + 1 for label in labels[n::columns]) for n in range(columns)
        )
        figure.set_figheight(figure.get_figheight() + 0.2 + 0.16 * lines)
        figure.legend(
            list(found.values()), labels, loc="outside lower center", fontsize=7, ncols=columns
        )


_Posterior = tuple[str, str]


def _posterior(run: Run, record: Mapping[str, Any]) -> _Posterior:
    """What tells one condition's posterior from another's: task, base model, T, and the condition."""
    model = run.config.get("lm", {}).get("name")
    settings = json.dumps([run.config["task"], model, run.temperature], sort_keys=True, default=str)
    return settings, f"{record['group']}/{record['condition']}"


def _log_z(section: Section) -> dict[_Posterior, float]:
    """log Z of each condition: exact where it can be, else the largest estimate of any method's samples.

    Each is a lower bound on average, so that the largest is the nearest.
    """
    exact: dict[_Posterior, float] = {}
    bounds: dict[_Posterior, float] = {}
    for method in section.methods:
        run = method.runs[0]
        for record in run.samples(method.row):
            at, found = _posterior(run, record), _finite(record, run.temperature)
            if support := record.get("support_log_reward"):
                exact[at] = float(np.logaddexp.reduce(np.asarray(support) / run.temperature))
            if len(found) > 1:
                bound = importance_bound([r - q for _, r, q in found])
                bounds[at] = max(bound, bounds.get(at, -math.inf))
    return bounds | exact


def _calibrated(run: Run, row: str, log_z: Mapping[_Posterior, float]) -> list[tuple[float, float]]:
    """log R/T and log q + log Z of the different samples of each condition, nats."""
    dots: list[tuple[float, float]] = []
    for record in run.samples(row):
        found = _finite(record, run.temperature)
        if len(found) > 1:
            at = log_z[_posterior(run, record)]
            dots += {text: (r, q + at) for text, r, q in found}.values()
    return dots[:: math.ceil(len(dots) / _MOST_DOTS) or 1]


def _evidence(run: Run, row: str) -> Iterator[tuple[float, float, float]]:
    """Exact log Z, mean φ and importance-weighted bound of each condition, nats."""
    for record in run.samples(row):
        support = [value / run.temperature for value in record.get("support_log_reward") or ()]
        found = _finite(record, run.temperature)
        if support and found:
            phi = [r - q for _, r, q in found]
            exact = float(np.logaddexp.reduce(support))
            yield exact, mean_phi(phi), importance_bound(phi)


def _finite(record: Mapping[str, Any], temperature: float) -> list[tuple[str, float, float]]:
    # A string that was cut where it cannot end has probability 0.
    return [
        (text, r / temperature, q)
        for text, r, q in zip(
            record["singles"], record["log_reward"], record["log_pf"], strict=False
        )
        if math.isfinite(r) and math.isfinite(q)
    ]


Curve = tuple[list[float], list[float], list[float]]


def _curves(method: Method, metric: str, clock: str | None) -> dict[str, Curve]:
    """By evaluation set: training so far, mean over seeds, standard error; the last one is final."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for run in method.runs:
        path = run.folder / "metrics.jsonl"
        records = read_metrics(path) if path.is_file() else []
        spent = _spent(run, records, clock)
        last: dict[str, dict[int, float]] = {}
        for record in records:
            for name, value in record.items():
                kind, _, rest = name.partition("/")
                if (
                    kind in ("eval", "final")
                    and rest.startswith(f"{metric}/")
                    and value is not None
                ):
                    # At the last step the final evaluation, which has more conditions, wins.
                    last.setdefault(rest.partition("/")[2], {})[record["step"]] = value
        for group, values in last.items():
            for step, value in values.items():
                found.setdefault(group, {}).setdefault(step, []).append((spent(step), value))
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
    """Name of the scalar that tells what a step costs.

    On a CPU that is computing time, which other work on the machine does not lengthen; where a run had
    a GPU, or has not written it down, the time that has passed.
    """
    runs = [run for method in methods for run in method.runs]
    known = all(run.on_cpu and "train/cpu_seconds" in run.metrics for run in runs)
    return "train/cpu_seconds" if known else "train/seconds"


def _spent(
    run: Run, records: Sequence[Mapping[str, Any]], clock: str | None
) -> Callable[[int], float]:
    """Training up to an optimizer step, evaluations not counted: minutes, or strings trained on."""
    if clock is not None:
        seconds = {r["step"]: float(r[clock]) for r in records if r.get(clock) is not None}
        before = dict(zip(sorted(seconds), [0, *sorted(seconds)], strict=False))
        # Where not every step has a record, those before it are taken to be as long.
        return lambda step: sum((s - before[s]) * t for s, t in seconds.items() if s <= step) / 60
    sampling, trainer = run.config.get("sampling", {}), run.config.get("trainer", {})
    a_step = (
        sampling.get("conditions", 1) * sampling.get("samples", 1) * trainer.get("accumulate", 1)
    )
    for name in ("devices", "nodes"):
        a_step *= trainer.get(name) if isinstance(trainer.get(name), int) else 1
    return lambda step: float(step * a_step)


def _test_time(axes: Axes, section: Section, group: str) -> None:
    """A metric of single samples against the strings drawn for each of them."""
    metric = metric_of_one(section)
    for point in policies(section, group):
        marker = "*" if point.n == 1 else "P"
        color = _color(section, point.method)
        axes.plot(point.n, fmean(point.values), marker, color=color, label=point.label)
    for number, way in enumerate(drawn(section, group)):
        values = list(way.by_n.values())
        axes.errorbar(
            list(way.by_n), list(map(fmean, values)), list(map(standard_error, values)),
            marker="sDo"[number % 3], linestyle=("-", "--", ":")[number % 3], color="grey", capsize=2,
            label=way.label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="strings drawn per question",
        ylabel=column_title(f"{metric}/{group}").replace(" (%)", ""),
    )
