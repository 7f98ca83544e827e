"""Comparison of methods at an equal number of strings per question, and where their curves cross.

A trained policy is evaluated with one string per question and, if the task takes a majority vote, with
several. The base model's rows ``best_of_<n>`` and ``resampled_<n>`` pick one of n strings, the alternative
to training. Sampling costs the same for all of them, apart from the adapter; picking a string additionally
requires its log R, i.e. one more forward pass over it after each of the posterior's contexts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gfn_runner.report.headline import direction_of
from gfn_runner.report.methods import Method
from gfn_runner.report.names import column_title
from gfn_runner.report.summary import Section, cell
from gfn_runner.report.table import Table

_DRAWS = re.compile(r"(resampled|best_of)_(\d+)")


@dataclass(frozen=True)
class Point:
    """A trained policy evaluated with n strings per question: its label and its metric column."""

    method: Method
    label: str
    n: int
    column: str

    @property
    def mean(self) -> float:
        return fmean(self.method.values(self.column))


def chosen_from(method: Method) -> tuple[str, int] | None:
    """Return how a row picks one of n base-model strings, and n; ``None`` for other rows."""
    found = _DRAWS.fullmatch(method.row)
    return (found[1], int(found[2])) if found else None


def metric_of_one(section: Section) -> str:
    """Return the single-string metric: ``single_accuracy`` if measured, else the first headline metric."""
    if groups_of(section, "single_accuracy"):
        return "single_accuracy"
    return section.headline[0] if section.headline else ""


def ways_of_choosing(section: Section, column: str) -> dict[str, dict[int, Method]]:
    """Collect the ways of picking one of n strings for which ``<metric>/<evaluation set>`` was measured.

    Returns:
        For each way (its name includes any settings that differ), a mapping from n, ascending, to its method.
    """
    found: dict[str, dict[int, Method]] = {}
    for method in section.methods:
        if (chosen := chosen_from(method)) and method.values(column):
            settings = method.label.partition(" (")[2]
            label = chosen[0].replace("_", " ") + (f" ({settings}" if settings else "")
            found.setdefault(label, {})[chosen[1]] = method
    return {label: dict(sorted(by_n.items())) for label, by_n in found.items()}


def policies(section: Section, group: str) -> list[Point]:
    """Return each trained policy with one string per question and, where measured, with a majority vote."""
    single, vote = f"{metric_of_one(section)}/{group}", f"vote_accuracy/{group}"
    points = []
    for method in (m for m in section.methods if m.row == "final" and m.values(single)):
        points.append(Point(method, f"{method.label}, one sample", 1, single))
        n = method.runs[0].section("evaluation").get("votes")
        if single.startswith("single_accuracy/") and method.values(vote) and n:
            points.append(Point(method, f"{method.label}, vote", n, vote))
    return points


def groups_of(section: Section, metric: str) -> list[str]:
    """Return the evaluation sets on which any method has the metric."""
    parts = [name.partition("/") for method in section.methods for name in method.names]
    return list(dict.fromkeys(group for name, _, group in parts if name == metric and group))


def equal_compute(section: Section) -> Table | str:
    """Compare policies with picking from as many base-model strings, and find how many those need to match.

    Returns:
        A table with one row per policy and evaluation set, or a sentence that says what is missing.
    """
    metric = metric_of_one(section)
    ways = {
        group: ways_of_choosing(section, f"{metric}/{group}")
        for group in groups_of(section, metric)
    }
    labels = list(dict.fromkeys(label for own in ways.values() for label in own))
    if not labels:
        return "no rows with several draws per question"
    if direction_of(metric) == "minimize":
        return f"{metric}, where smaller is better, is not compared"
    rows = [
        _row(point, group, f"{metric}/{group}", [own.get(label, {}) for label in labels])
        for group, own in ways.items()
        for point in policies(section, group)
    ]
    if not rows:
        return "no trained policy was measured on the same sets"
    columns = [column for label in labels for column in (label, f"{label} reaches it at")]
    title = column_title(metric)
    return Table((title, "set", "strings per question", "policy", *columns), rows)


def _row(point: Point, group: str, column: str, ways: Sequence[dict[int, Method]]) -> list[str]:
    cells = [point.label, group.replace("_", " "), str(point.n), cell(point.method, point.column)]
    for by_n in ways:
        if not by_n:
            cells += ["", ""]
            continue
        # If exactly this n was not measured, use the next larger one, which favors the base model.
        at = next((n for n in by_n if n >= point.n), None)
        more = "" if at == point.n else f" (n = {at})"
        cells.append("" if at is None else cell(by_n[at], column) + more)
        means = {n: fmean(method.values(column)) for n, method in by_n.items()}
        reached = next((n for n, mean in means.items() if mean >= point.mean), None)
        cells.append(f"n = {reached}" if reached else f"none up to {max(means)}")
    return cells
