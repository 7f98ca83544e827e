"""Figures of one run, drawn from the files in its folder; runs no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gfn_runner.report.charts import can_be_log, log_floor
from gfn_runner.report.comparison import likelihood_diversity, number_histogram, share_bars
from gfn_runner.report.table import row_labels
from gfn_runner.runtime.json_lines import read_lines, read_metrics


def draw_all(folder: Path, metrics: Mapping[str, Any] | None = None) -> list[Path]:
    """Draw every figure that the folder has the data for, into ``figures/``.

    Args:
        folder: of the run.
        metrics: its final ones; ``None``: as its ``metrics.json`` has them.

    Returns:
        The files written: ``loss_and_reward``, ``phi_spread``, ``accuracy``, ``log_reward``,
        ``histogram``, ``likelihood_diversity``, ``shares``.
    """
    records = read_metrics(folder / "metrics.jsonl")
    final: Any = metrics or json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    drawn = {
        "loss_and_reward": _loss_and_reward(records),
        "phi_spread": _phi_spread(records),
        "accuracy": _accuracy(records, final),
        "log_reward": _log_reward(read_lines(folder / "demonstrations.jsonl")),
        "histogram": number_histogram(folder, final),
        "likelihood_diversity": likelihood_diversity(final),
        "shares": share_bars(final),
    }
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    written = []
    for name, figure in drawn.items():
        if figure is not None:
            path = target / f"{name}.png"
            figure.savefig(path, dpi=120)
            plt.close(figure)
            written.append(path)
    return written


def _series(records: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    pairs = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _lines(axes: Axes, records: Sequence[dict[str, Any]], labelled: dict[str, str]) -> None:
    for name, label in labelled.items():
        steps, values = _series(records, name)
        if values:
            axes.plot(steps, values, label=label, linewidth=1.0)
    _step_axis(axes)
    if axes.lines:
        axes.legend(fontsize=8)


def _step_axis(axes: Axes) -> None:
    """Optimizer steps are whole numbers, even where there is one alone."""
    low, high = axes.get_xlim()
    if axes.lines and high - low < 1:
        axes.set_xlim((low + high) / 2 - 1, (low + high) / 2 + 1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)


def _loss_and_reward(records: Sequence[dict[str, Any]]) -> Figure | None:
    if not _series(records, "train/loss")[1]:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    _lines(left, records, {"train/loss": "loss (nats²)"})
    losses = _series(records, "train/loss")[1]
    if can_be_log(losses):
        left.set_yscale("log")
        # A first loss of 0 or nearly 0 would leave all others in a strip at the top.
        left.set_ylim(bottom=0.8 * log_floor(losses))
    steps, temperature = _series(records, "train/reward_temperature")
    if temperature:
        # Residuals grow as 1/T: without T beside it the loss cannot be read.
        twin = left.twinx()
        twin.plot(steps, temperature, color="grey", linestyle=":", linewidth=1.0)
        twin.set_ylabel("reward temperature T (dotted)", color="grey")
        twin.set_ylim(bottom=0)
    # Hot samples and replayed strings are another population than the policy's own.
    for label, members in _by_behaviour(records).items():
        steps, values = _series(members, "train/log_reward")
        right.plot(steps, values, ".", label=f"mean log R, {label}", markersize=4)
    right.set_ylabel("nats")
    _lines(
        right,
        records,
        {
            "train/log_z": "mean terminal φ, on-policy: log Z − KL",
            "train/log_z_bound": "importance-weighted bound on log Z",
        },
    )
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    return figure


def _phi_spread(records: Sequence[dict[str, Any]]) -> Figure | None:
    if not _series(records, "train/phi_spread")[1]:
        return None  # no step had different strings of a condition
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    _lines(
        left,
        records,
        {"train/phi_spread": "mean over conditions", "train/phi_spread_max": "largest"},
    )
    left.set(title="all states", ylabel="standard deviation of φ (nats)")
    # Hot samples and old ones lie where the policy has little mass: three populations, not one line.
    for label, members in _by_behaviour(records).items():
        steps, values = _series(members, "train/phi_spread_terminal")
        right.plot(steps, values, ".", label=label, markersize=4)
    right.set_title("whole strings only")
    _step_axis(right)
    if right.lines:
        right.legend(fontsize=8)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    return figure


def _by_behaviour(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Training records by where their trajectories came from; accumulated mixtures left out."""
    found: dict[str, list[dict[str, Any]]] = {"on-policy": [], "tempered": [], "replay": []}
    for record in records:
        share = record.get("train/from_replay")
        if share == 1.0:
            found["replay"].append(record)
        elif share == 0.0:
            on_policy = record.get("train/exploration_temperature") == 1.0
            found["on-policy" if on_policy else "tempered"].append(record)
    return found


def _accuracy(records: Sequence[dict[str, Any]], final: dict[str, float]) -> Figure | None:
    key = "final/vote_accuracy/"
    groups = [name.removeprefix(key) for name in final if name.startswith(key)]
    if not groups:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    series = {"vote_accuracy": ("-", "o"), "single_accuracy": ("--", "x")}
    for number, group in enumerate(groups):
        for metric, (style, marker) in series.items():
            steps, values = _series(records, f"eval/{metric}/{group}")
            label = f"{group.replace('_', ' ')}, {metric.split('_')[0]}"
            left.plot(
                steps, values, style, color=f"C{number}", marker=marker, markersize=4, label=label
            )
    left.set(ylabel="accuracy", ylim=(-0.02, 1.02))
    _step_axis(left)
    # Long enough to tell a dashed line from a whole one.
    left.legend(fontsize=7, handlelength=4)
    _bars(right, final, groups)
    return figure


def _bars(axes: Axes, final: dict[str, float], groups: Sequence[str]) -> None:
    rows = [
        (f"{label}, vote", prefix, "vote_accuracy")
        for prefix, label in reversed(row_labels(final).items())
        if any(f"{prefix}/vote_accuracy/{group}" in final for group in groups)
    ]
    rows += [(f"{row_labels(final)['final']}, single", "final", "single_accuracy")]
    width = 0.8 / len(rows)
    for number, (label, prefix, metric) in enumerate(rows):
        values = [final.get(f"{prefix}/{metric}/{group}") or 0.0 for group in groups]
        low = [final.get(f"{prefix}/{metric}_low/{group}") or 0.0 for group in groups]
        high = [final.get(f"{prefix}/{metric}_high/{group}") or 0.0 for group in groups]
        errors = [
            [max(0.0, v - a) for v, a in zip(values, low, strict=True)],
            [max(0.0, b - v) for v, b in zip(values, high, strict=True)],
        ]
        places = [at + (number - (len(rows) - 1) / 2) * width for at in range(len(groups))]
        axes.bar(places, values, width, yerr=errors, label=label, capsize=2)
    axes.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    axes.set(ylabel="accuracy, 95 % interval", ylim=(0, 1.05))
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncol=min(4, len(rows)))


def _log_reward(records: Sequence[dict[str, Any]]) -> Figure | None:
    """How log R of samples is spread, beside demonstrations of the same conditions."""
    if not records:
        return None
    known = [value for record in records for value in record["demonstration_log_reward"]]
    sampled = [value for record in records for value in record["log_reward"]]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    bins = np.linspace(min(known + sampled) - 0.5, max(known + sampled) + 0.5, 41).tolist()
    for label, values in (("demonstrations", known), ("samples at temperature 1", sampled)):
        # Shares: there are more samples than demonstrations.
        weights = [1 / len(values)] * len(values)
        axes.hist(values, bins=bins, weights=weights, alpha=0.6, label=f"{label} ({len(values)})")
    axes.set(xlabel="log R (nats)", ylabel="share", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
