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
from gfn_runner.report.summary import Section, spread

_DRAWS = re.compile(r"(resampled|best_of)_(\d+)")


@dataclass(frozen=True)
class Drawn:
    """A way to choose one of n strings of the base model.

    Attributes:
        label: of the way, with settings where the methods at hand differ in them.
        by_n: strings a question to the metric's values, one a seed; smallest first.
        seeds: likewise the number of runs, of which some may lack the metric.
    """

    label: str
    by_n: dict[int, list[float]]
    seeds: dict[int, int]

    def at(self, n: int) -> int | None:
        """The smallest measured number of strings that is not below n."""
        return next((m for m in self.by_n if m >= n), None)

    def reaching(self, value: float) -> int | None:
        """The smallest measured number of strings whose mean over seeds is not below a value."""
        return next((n for n, values in self.by_n.items() if fmean(values) >= value), None)


@dataclass(frozen=True)
class Point:
    """A trained policy with n strings a question: how it is called, and its values, one a seed."""

    method: Method
    label: str
    n: int
    values: list[float]


def chosen_from(method: Method) -> tuple[str, int] | None:
    """How a row chooses one of several strings of the base model, and of how many; ``None`` of others."""
    found = _DRAWS.fullmatch(method.row)
    return (found[1], int(found[2])) if found else None


def metric_of_one(section: Section) -> str:
    """The metric of a single string: ``single_accuracy`` where there is one, or the task's first."""
    names = {
        name.split("/")[1] for m in section.methods for run in m.runs for name in run.metrics
        if name.startswith(f"{m.row}/")
    }  # fmt: skip
    if "single_accuracy" in names:
        return "single_accuracy"
    return section.headline[0] if section.headline else ""


def drawn(section: Section, group: str) -> list[Drawn]:
    """All ways of choosing that were measured on an evaluation set."""
    metric = metric_of_one(section)
    found: dict[tuple[str, str], dict[int, tuple[list[float], int]]] = {}
    for method in section.methods:
        values = method.values(f"{metric}/{group}")
        if values and (chosen := chosen_from(method)):
            settings = method.label.partition(" (")[2]
            found.setdefault((chosen[0], settings), {})[chosen[1]] = values, len(method.runs)
    return [
        Drawn(
            kind.replace("_", " ") + (f" ({settings}" if settings else ""),
            {n: values for n, (values, _) in sorted(by_n.items())},
            {n: seeds for n, (_, seeds) in by_n.items()},
        )
        for (kind, settings), by_n in found.items()
    ]


def policies(section: Section, group: str) -> list[Point]:
    """Each trained policy with one string a question, and with the vote of several where it has one."""
    metric = metric_of_one(section)
    points = []
    for method in section.methods:
        if method.row != "final":
            continue
        if values := method.values(f"{metric}/{group}"):
            points.append(Point(method, f"{method.label}, one sample", 1, values))
        evaluation = method.runs[0].config.get("evaluation", {})
        votes = method.values(f"vote_accuracy/{group}")
        if metric == "single_accuracy" and votes and (n := evaluation.get("votes", 0)):
            points.append(Point(method, f"{method.label}, vote", n, votes))
    return points


def groups_of(section: Section, metric: str) -> list[str]:
    """Evaluation sets of a metric, in any method."""
    names = dict.fromkeys(
        name.split("/", 2)[2]
        for method in section.methods
        for run in method.runs
        for name in run.metrics
        if name.startswith(f"{method.row}/{metric}/")
    )
    return list(names)


def equal_compute(section: Section) -> Table | str:
    """Policies beside the ways of choosing at as many strings, and how many strings these need.

    Returns:
        The table, a row an evaluation set and number of strings; or a sentence on what is missing.
    """
    metric = metric_of_one(section)
    ways = {group: drawn(section, group) for group in groups_of(section, metric)}
    labels = list(dict.fromkeys(way.label for own in ways.values() for way in own))
    if not labels:
        return "no rows of several draws a question"
    if direction_of(metric) == "minimize":
        return f"{metric}, where smaller is better, is not compared"
    rows = [
        _row(point, group, metric, [_by(label, own) for label in labels])
        for group, own in ways.items()
        for point in policies(section, group)
    ]
    if not rows:
        return "no trained policy was measured on the same sets"
    columns = [column for label in labels for column in (label, f"{label} reaches it at")]
    title = column_title(metric)
    return Table((title, "set", "strings a question", "policy", *columns), rows)


def _by(label: str, ways: Sequence[Drawn]) -> Drawn:
    return next((way for way in ways if way.label == label), Drawn(label, {}, {}))


def _row(point: Point, group: str, metric: str, ways: Sequence[Drawn]) -> list[str]:
    cells = [point.label, group.replace("_", " "), str(point.n)]
    cells.append(_cell(metric, point.values, len(point.method.runs)))
    for way in ways:
        at = way.at(point.n)
        # Where the very number was not measured, the next larger one: more compute for the base model.
        more = "" if at == point.n else f" (n = {at})"
        cells.append("" if at is None else _cell(metric, way.by_n[at], way.seeds[at]) + more)
        reached = way.reaching(fmean(point.values))
        none = f"none up to {max(way.by_n)}" if way.by_n else ""
        cells.append(f"n = {reached}" if reached else none)
    return cells


def _cell(metric: str, values: list[float], seeds: int) -> str:
    missing = f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else ""
    return spread(metric, values) + missing
