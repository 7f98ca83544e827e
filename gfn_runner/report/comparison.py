"""Figures that set the policy beside the base model: histogram, scatter, shares; runs no model."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gfn_runner.report.table import row_labels, shown_number
from gfn_runner.runtime.json_lines import read_lines


def number_histogram(folder: Path, final: Mapping[str, float]) -> Figure | None:
    """How often each value was drawn, policy and base model, against the target.

    For runs whose samples are values of a table (``final/kl/…``).
    """
    if not any(name.startswith("final/kl/") for name in final):
        return None
    files = {"final": "samples.jsonl", "base_0_shot": "samples_base_0_shot.jsonl"}
    labels = row_labels(final)
    drawn = {labels[p]: read_lines(folder / f) for p, f in files.items() if p in labels}
    drawn = {label: records for label, records in drawn.items() if records}
    if not drawn:
        return None
    figure, all_axes = plt.subplots(
        len(drawn), 1, figsize=(10, 2.6 * len(drawn)), layout="constrained", squeeze=False
    )
    for axes, (label, records) in zip(all_axes[:, 0], drawn.items(), strict=True):
        value_bars(axes, label, records[0])
    return figure


def value_bars(axes: Axes, label: str, record: Mapping[str, Any], color: str = "C0") -> None:
    """Share of each value among a condition's samples, and the target as steps.

    Args:
        axes: to draw into.
        label: of the method that drew them.
        record: of ``samples*.jsonl``, with ``target`` and ``singles``.
        color: of the bars.
    """
    target = record["target"]
    counts = Counter(record["singles"])
    n, places = sum(counts.values()), range(len(target))
    axes.bar(places, [counts[value] / n for value in target], width=0.9, color=color)
    axes.step(places, list(target.values()), "k--", where="mid", linewidth=1.0, label="target")
    other = 1 - sum(counts[value] for value in target) / n
    title = (
        f"{label}: {n} samples, {shown_number('invalid_share', max(0.0, other))} % of them invalid"
    )
    axes.set_title(textwrap.fill(title, 110), fontsize=9)
    step = max(1, len(target) // 20)
    names = [value.strip() for value in target]
    axes.set_xticks(list(places)[::step], names[::step], fontsize=7)
    axes.set_ylabel("share")
    axes.legend(fontsize=7)


def likelihood_diversity(final: Mapping[str, float]) -> Figure | None:
    """Mean and best log-likelihood under the base model against diversity, one mark a row."""
    groups = [n.removeprefix("final/diversity/") for n in final if n.startswith("final/diversity/")]
    groups = [group for group in groups if f"final/log_likelihood/{group}" in final]
    if not groups:
        return None
    figure, all_axes = plt.subplots(
        1, len(groups), figsize=(5.5 * len(groups), 4), layout="constrained", squeeze=False
    )
    for axes, group in zip(all_axes[0], groups, strict=True):
        for number, (prefix, label) in enumerate(row_labels(final).items()):
            x = final.get(f"{prefix}/diversity/{group}")
            for name, marker in (("log_likelihood", "o"), ("log_likelihood_max", "^")):
                y = final.get(f"{prefix}/{name}/{group}")
                if x is not None and y is not None:
                    best = name.endswith("max")
                    axes.plot(x, y, marker, color=f"C{number}", label=None if best else label)
        axes.set(xlabel="diversity: 1 − mean pairwise cosine", ylabel="log p_LM (nats)")
        axes.set_title(
            f"{group.replace('_', ' ')}: mean (●) and best (▲) of a condition", fontsize=9
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def share_bars(final: Mapping[str, float]) -> Figure | None:
    """Shares that a task measures, one group of bars a share; what each is a share of stands below it.

    The share of invalid samples is none of what a task asks for, and stands with the histogram.
    """
    names = [name.removeprefix("final/") for name in final if name.startswith("final/")]
    names = [name for name in names if name.partition("/")[0].endswith("_share")]
    names = [name for name in names if not name.startswith("invalid_share/")]
    if not names:
        return None
    labels = row_labels(final)
    figure, axes = plt.subplots(figsize=(max(5.0, 1.6 * len(names)), 3.8), layout="constrained")
    width = 0.8 / len(labels)
    for number, (prefix, label) in enumerate(labels.items()):
        places = [at + (number - (len(labels) - 1) / 2) * width for at in range(len(names))]
        heights = [final.get(f"{prefix}/{name}", math.nan) for name in names]  # no bar is no 0
        axes.bar(places, heights, width, label=label)
    axes.set_xticks(range(len(names)), list(map(_of_what, names)), fontsize=7)
    axes.set(ylabel="share", ylim=(0, 1.05))
    # Beside the bars, of which one may be anywhere.
    figure.legend(loc="outside lower center", fontsize=7, ncols=2)
    axes.grid(alpha=0.3, axis="y")
    return figure


# Of all others a sample is what is counted.
_WHOLES = {"found_share": "translations", "all_found_share": "sentences"}


def _of_what(name: str) -> str:
    """What a share is called, what it is a share of, and its evaluation set."""
    metric, _, group = name.partition("/")
    said = metric.removesuffix("_share").replace("_", " ")
    return f"{said}\n(of {_WHOLES.get(metric, 'samples')})\n{group.replace('_', ' ')}"
