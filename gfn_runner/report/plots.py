"""Charts of runs over optimizer steps: panels with their data, as Plotly and the templates take them.

Plotly's own Python objects validate every value and take a second for a page; a page is written at every
evaluation. So figures are plain dictionaries for ``Plotly.newPlot``. What all have in common (margins,
fonts, grid) is in ``templates/page.js``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gfn_runner.report.history import SOURCES, History
from gfn_runner.report.names import Name, readable
from gfn_runner.report.panels import (
    SECTIONS,
    Panel,
    Section,
    evaluated,
    headline_section,
    other_section,
    panel_name,
    scale_of,
)
from gfn_runner.report.runs import Run
from gfn_runner.report.sweep_runs import SweepRuns, mean_over_sets

COLORS = (
    "#1f77b4", "#d95f02", "#2a9d4a", "#c2304a", "#7b5ea7",
    "#8c564b", "#e377c2", "#6b6b6b", "#a6a01c", "#17a2b8",
)  # fmt: skip
_SOURCE_COLORS = dict(zip(SOURCES, (COLORS[0], COLORS[1], "#9a9a9a"), strict=True))
# Above this many, lines are drawn as means of neighbours and of dots each k-th is drawn.
MOST_POINTS = 240
_OF_SWEEPS = 60  # likewise: of many runs the trend is to be seen
_PARTS = 24  # of a run, of whose batches the share from a store is drawn
_FEW = 24  # points that get a marker each, so that evaluations can be told apart
_DECADES = 6  # of a logarithmic axis: a few tiny values would squeeze all others

Trace = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A panel with its data.

    Attributes:
        title: with the unit.
        figure: ``data`` and ``layout`` of Plotly.
        help: the text below it.
    """

    title: str
    figure: dict[str, Any]
    help: str = ""


@dataclass(frozen=True)
class Charts:
    """The charts of a page.

    Attributes:
        sections: each with name, text and its plots.
        missing: titles of those without data.
    """

    sections: Sequence[tuple[str, str, Sequence[Plot]]]
    missing: Sequence[str]


def run_charts(run: Run) -> Charts:
    """Those of a run's page."""
    history = run.history
    return _charts(
        run.headline, lambda panel: run_plot(panel, history), other_section(history.series)
    )


def sweep_charts(sweep: SweepRuns, colors: Sequence[str]) -> Charts:
    """Those of a sweep's page: of each panel the first metric, a curve a run."""
    return _charts(sweep.headline, lambda panel: _sweep_plot(panel, sweep, colors), without="areas")


def _charts(
    headline: Sequence[str],
    make: Callable[[Panel], Plot | None],
    *others: Section,
    without: str = "",
) -> Charts:
    """The task's own metrics first, and each panel once."""
    shown: set[Panel] = set()
    sections, missing = [], []
    for section in (headline_section(headline), *SECTIONS, *others):
        panels = [panel for panel in section.panels if panel.on_pages and panel not in shown]
        panels = [panel for panel in panels if panel.kind != without]
        shown.update(panels)
        made = [(panel, make(panel)) for panel in panels]
        missing += [panel.named.title for panel, plot in made if plot is None]
        if plots := [plot for _, plot in made if plot is not None]:
            sections.append((section.name, section.text, plots))
    return Charts(sections, missing)


def run_plot(panel: Panel, history: History) -> Plot | None:
    """A run's plot of a panel; ``None`` without data."""
    traces, help = [], panel.help
    if panel.is_evaluated:
        traces = _evaluated(panel, history)
        help = f"{help} Large dots: the last evaluation of the policy, of all conditions.".strip()
    elif panel.kind == "by_source":
        metric = panel.metrics[0]
        for source, color in _SOURCE_COLORS.items():
            traces += _series(source, color, history.get(metric, source), dots=True)
        if not traces:
            traces = _series("fresh and stored together", COLORS[0], history.get(metric))
    else:
        for at, metric in enumerate(panel.metrics):
            label = panel.labels[at] if panel.labels else panel.named.title
            color = COLORS[at % len(COLORS)]
            traces += _series(label, color, history.get(metric), dots=panel.kind == "dots")
    if panel.kind == "areas":
        traces = [
            own | {"stackgroup": "all", "line": {**own["line"], "width": 0}} for own in traces
        ]
    most = _PARTS if panel.metrics == ("train/from_replay",) else MOST_POINTS
    return plot(panel.named, traces, help=help, log=panel.log, most=most) if traces else None


def _evaluated(panel: Panel, history: History) -> list[Trace]:
    """By evaluation set: evaluations on the way, and a large marker of the last one, of all conditions."""
    # Evaluations on the way are of the policy alone: so is the last one of an E-step, which an M-step
    # follows, whose answer model has another R.
    end = "e_step" if any(n.startswith("e_step/") for n in history.series) else "final"
    bare = [evaluated(metric) for metric in panel.metrics]
    kinds = [f"{kind}/{metric}" for metric in bare for kind in ("eval", end)]
    sets = dict.fromkeys(group for kind in kinds for group in history.sets(kind))
    traces = []
    for place, group in enumerate(sets):
        color = COLORS[place % len(COLORS)]
        for at, metric in enumerate(bare):
            label = readable(group) + (f", {panel.labels[at]}" if panel.labels else "")
            scale, dash = scale_of(panel.metrics[at]), ("solid", "dash", "dot")[at % 3]
            x, y = history.get(f"eval/{metric}/{group}")
            traces += _series(label, color, (x, [scale * v for v in y]), line={"dash": dash})
            x, y = history.get(f"{end}/{metric}/{group}")
            # Evaluated again after resuming, or in each round of EM: the last one counts.
            last = (x[-1:], [scale * v for v in y[-1:]])
            for own in _series(f"{label}, all conditions", color, last, dots=True):
                traces.append(own | {"showlegend": False, "marker": {"color": color, "size": 9}})
    return traces


def _sweep_plot(panel: Panel, sweep: SweepRuns, colors: Sequence[str]) -> Plot | None:
    metric, source = panel.metrics[0], SOURCES[0] if panel.kind == "by_source" else None
    scale, traces = scale_of(metric), []
    for number, run in enumerate(sweep.runs):
        if panel.is_evaluated:
            x, y = mean_over_sets(run.history, evaluated(metric))
        else:
            x, y = run.history.get(metric, source)
            if not y:
                x, y = run.history.get(metric)
        label = f"run {run.folder.name}: {sweep.label(run)}".removesuffix(": ")
        series = (x, [scale * value for value in y])
        for own in _series(label, colors[number], series, dots=panel.kind == "dots"):
            traces.append(own | {"uid": f"run{number}"})  # Plotly makes a CSS class of it
    if not traces:
        return None
    help = "Mean over evaluation sets." if panel.is_evaluated else ""
    help = "On-policy batches; of runs without any, all batches." if source else help
    made = plot(panel_name(metric), traces, help=help, log=panel.log, most=_OF_SWEEPS)
    made.figure["layout"]["showlegend"] = False
    return made


def _series(
    label: str,
    color: str,
    series: tuple[Sequence[float], Sequence[float]],
    *,
    dots: bool = False,
    line: dict[str, Any] | None = None,
) -> list[Trace]:
    """A trace of Plotly, if there are values."""
    x, y = series
    if not y:
        return []
    own: Trace = {"x": x, "y": y, "name": label, "mode": "markers" if dots else "lines"}
    if dots:
        return [own | {"marker": {"color": color, "size": 4}}]
    return [own | {"line": {"color": color, "width": 1.5, **(line or {})}}]


def plot(
    name: Name,
    traces: Sequence[Trace],
    *,
    help: str = "",
    log: bool = False,
    most: int = MOST_POINTS,
) -> Plot:
    """A plot over optimizer steps.

    Args:
        help: below it; that points were left out is added.
        log: a logarithmic y-axis, unless a value is below 0 or none is above it.
    """
    k = max(math.ceil(len(own["x"]) / most) for own in traces)
    if k > 1:
        help = f"{help} Lines are means of {k} steps, dots one in {k}.".strip()
    shown = [_thinned(own, k) for own in traces]
    values = [value for own in shown for value in own["y"]]
    layout: dict[str, Any] = {"showlegend": len(shown) > 1}
    if log and min(values) >= 0 and max(values) > 0:
        high = math.log10(max(values))
        low = max(min(math.log10(value) for value in values if value > 0), high - _DECADES)
        layout["yaxis"] = {"type": "log", "range": [round(low - 0.05, 3), round(high + 0.05, 3)]}
    return Plot(name.with_unit, {"data": shown, "layout": layout}, help)


def _thinned(own: Trace, k: int) -> Trace:
    """Of lines means of k neighbours, of dots each k-th; to six digits."""
    is_line = own["mode"] == "lines"
    starts = range(0, len(own["x"]), k)
    x, y = (
        [_brief(fmean(values[at : at + k]) if is_line else values[at]) for at in starts]
        for values in (own["x"], own["y"])
    )
    marks = is_line and len(x) <= _FEW and "stackgroup" not in own
    return own | {"x": x, "y": y, "mode": "lines+markers" if marks else own["mode"]}


def _brief(value: float) -> float:
    return int(value) if value == int(value) else float(f"{value:.6g}")
