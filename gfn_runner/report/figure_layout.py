"""Panels, colors and legends of the figures that compare methods."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gfn_runner.report.equal_compute import chosen_from
from gfn_runner.report.methods import Method
from gfn_runner.report.summary import Section


def color_of(section: Section, method: Method) -> str:
    # Methods that pick one of several strings are grey. Trained methods get their colors first, so that they
    # keep them if the palette runs out.
    if chosen_from(method) is not None:
        return "grey"
    own = [m for m in section.methods if chosen_from(m) is None]
    at = sorted(own, key=lambda m: not m.is_trained).index(method)
    if len(own) <= 10:
        return f"C{at}"
    # The colors of tab20 come in pairs of dark and light; use all dark ones first.
    return to_hex(plt.get_cmap("tab20")((2 * at + at // 10 % 2) % 20))


def panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(n, 3)
    rows = math.ceil(n / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[n:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:n])


def legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """Draw one legend below all panels, since labels may be long."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if found:
        characters = int(17 * figure.get_figwidth()) - 8
        columns = 2 if 2 * (max(map(len, found)) + 8) < characters else 1
        labels = [textwrap.fill(label, characters) for label in found]
        # Enlarge the figure by the height of the legend, so that the panels keep their size.
        lines = max(
            sum(label.count("\n") + 1 for label in labels[n::columns]) for n in range(columns)
        )
        figure.set_figheight(figure.get_figheight() + 0.2 + 0.16 * lines)
        figure.legend(
            list(found.values()), labels, loc="outside lower center", fontsize=7, ncols=columns
        )
