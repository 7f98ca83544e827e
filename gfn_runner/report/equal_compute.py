"""What methods reach with equal numbers of strings a question, and where they cross.

A trained policy is measured at one string a question and, where the task votes, at the vote of several.
The base model's rows ``best_of_<n>`` and ``resampled_<n>`` choose one string out of n, which is what one
would do instead of training. Strings cost the same in all of them but for the adapter; to choose, log R
of each is computed besides, which reads it once more after the posterior's contexts.
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
    """A trained policy with n strings a question: how it is called, and the column that is its value."""

    method: Method
    label: str
    n: int
    column: str

    @property
    def mean(self) -> float:
        return fmean(self.method.values(self.column))


def chosen_from(method: Method) -> tuple[str, int] | None:
    """How a row chooses one of several strings of the base model, and of how many; ``None`` of others."""
    found = _DRAWS.fullmatch(method.row)
    return (found[1], int(found[2])) if found else None


def metric_of_one(section: Section) -> str:
    """The metric of a single string: ``single_accuracy`` where there is one, or the task's first."""
    if groups_of(section, "single_accuracy"):
        return "single_accuracy"
    return section.headline[0] if section.headline else ""


def ways_of_choosing(section: Section, column: str) -> dict[str, dict[int, Method]]:
    """All ways of choosing one of n strings of which ``<metric>/<evaluation set>`` was measured.

    Returns:
        By the way's name, with settings where methods differ in them: n, smallest first, to its method.
    """
    found: dict[str, dict[int, Method]] = {}
    for method in section.methods:
        if (chosen := chosen_from(method)) and method.values(column):
            settings = method.label.partition(" (")[2]
            label = chosen[0].replace("_", " ") + (f" ({settings}" if settings else "")
            found.setdefault(label, {})[chosen[1]] = method
    return {label: dict(sorted(by_n.items())) for label, by_n in found.items()}


def policies(section: Section, group: str) -> list[Point]:
    """Each trained policy with one string a question, and with the vote of several where it has one."""
    single, vote = f"{metric_of_one(section)}/{group}", f"vote_accuracy/{group}"
    points = []
    for method in (m for m in section.methods if m.row == "final" and m.values(single)):
        points.append(Point(method, f"{method.label}, one sample", 1, single))
        n = method.runs[0].section("evaluation").get("votes")
        if single.startswith("single_accuracy/") and method.values(vote) and n:
            points.append(Point(method, f"{method.label}, vote", n, vote))
    return points


def groups_of(section: Section, metric: str) -> list[str]:
    """Evaluation sets of a metric, in any method."""
    parts = [name.partition("/") for method in section.methods for name in method.names]
    return list(dict.fromkeys(group for name, _, group in parts if name == metric and group))


def equal_compute(section: Section) -> Table | str:
    """Policies beside the ways of choosing at as many strings, and how many strings these need.

    Returns:
        The table, a row an evaluation set and number of strings; or a sentence on what is missing.
    """
    metric = metric_of_one(section)
    ways = {
        group: ways_of_choosing(section, f"{metric}/{group}")
        for group in groups_of(section, metric)
    }
    labels = list(dict.fromkeys(label for own in ways.values() for label in own))
    if not labels:
        return "no rows of several draws a question"
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
    return Table((title, "set", "strings a question", "policy", *columns), rows)


def _row(point: Point, group: str, column: str, ways: Sequence[dict[int, Method]]) -> list[str]:
    cells = [point.label, group.replace("_", " "), str(point.n), cell(point.method, point.column)]
    for by_n in ways:
        if not by_n:
            cells += ["", ""]
            continue
        # Where the very number was not measured, the next larger one: more compute for the base model.
        at = next((n for n in by_n if n >= point.n), None)
        more = "" if at == point.n else f" (n = {at})"
        cells.append("" if at is None else cell(by_n[at], column) + more)
        means = {n: fmean(method.values(column)) for n, method in by_n.items()}
        reached = next((n for n, mean in means.items() if mean >= point.mean), None)
        cells.append(f"n = {reached}" if reached else f"none up to {max(means)}")
    return cells
