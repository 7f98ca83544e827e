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
from gfn_runner.report.page import Table
from gfn_runner.report.summary import Section, cell

_DRAWS = re.compile(r"(resampled|best_of)_(\d+)")


@dataclass(frozen=True)
class Drawn:
    """A way to choose one of n strings of the base model.

    Attributes:
        label: of the way, with settings where the methods at hand differ in them.
        column: ``<metric>/<evaluation set>``.
        by_n: strings a question to the method that chooses among so many; smallest first.
    """

    label: str
    column: str
    by_n: dict[int, Method]

    def values(self) -> dict[int, list[float]]:
        """Of each number of strings the metric's values, one a seed."""
        return {n: method.values(self.column) for n, method in self.by_n.items()}


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


def drawn(section: Section, column: str) -> list[Drawn]:
    """All ways of choosing of which ``<metric>/<evaluation set>`` was measured."""
    found: dict[str, dict[int, Method]] = {}
    for method in section.methods:
        if (chosen := chosen_from(method)) and method.values(column):
            settings = method.label.partition(" (")[2]
            label = chosen[0].replace("_", " ") + (f" ({settings}" if settings else "")
            found.setdefault(label, {})[chosen[1]] = method
    return [Drawn(label, column, dict(sorted(by_n.items()))) for label, by_n in found.items()]


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
    ways = {g: drawn(section, f"{metric}/{g}") for g in groups_of(section, metric)}
    labels = list(dict.fromkeys(way.label for own in ways.values() for way in own))
    if not labels:
        return "no rows of several draws a question"
    if direction_of(metric) == "minimize":
        return f"{metric}, where smaller is better, is not compared"
    rows = [
        _row(point, group, [by_label.get(label) for label in labels])
        for group, own in ways.items()
        for by_label in [{way.label: way for way in own}]
        for point in policies(section, group)
    ]
    if not rows:
        return "no trained policy was measured on the same sets"
    columns = [column for label in labels for column in (label, f"{label} reaches it at")]
    title = column_title(metric)
    return Table((title, "set", "strings a question", "policy", *columns), rows)


def _row(point: Point, group: str, ways: Sequence[Drawn | None]) -> list[str]:
    cells = [point.label, group.replace("_", " "), str(point.n), cell(point.method, point.column)]
    for way in ways:
        if way is None:
            cells += ["", ""]
            continue
        # Where the very number was not measured, the next larger one: more compute for the base model.
        at = next((n for n in way.by_n if n >= point.n), None)
        more = "" if at == point.n else f" (n = {at})"
        cells.append("" if at is None else cell(way.by_n[at], way.column) + more)
        means = {n: fmean(values) for n, values in way.values().items()}
        reached = next((n for n, mean in means.items() if mean >= point.mean), None)
        cells.append(f"n = {reached}" if reached else f"none up to {max(means)}")
    return cells
