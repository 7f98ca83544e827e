"""Charts of runs over optimizer steps: panels with data, as Plotly and the templates expect them.

Plotly's own Python objects validate every value and take a second per page, and a page is written at every
evaluation. Figures are therefore plain dictionaries for ``Plotly.newPlot``. Their common style (margins,
fonts, grid) is defined in ``templates/page.js``.
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
# With more points, lines show means of k neighboring points, and only every k-th dot is drawn.
MOST_POINTS = 240
_OF_SWEEPS = 60  # the same for sweeps: with many runs only the trend matters
_PARTS = 24  # number of bins over a run, for the share of replayed batches
_FEW = 24  # up to this many points get markers, so that single evaluations can be told apart
_DECADES = 6  # most decades on a logarithmic axis; a few tiny values would squeeze all others

Trace = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A panel with its data.

    Attributes:
        title: with the unit.
        figure: ``data`` and ``layout`` for Plotly.
        help: text below the plot.
    """

    title: str
    figure: dict[str, Any]
    help: str = ""


@dataclass(frozen=True)
class Charts:
    """The charts of a page.

    Attributes:
        sections: name, text and plots of each section.
        missing: titles of panels without data.
    """

    sections: Sequence[tuple[str, str, Sequence[Plot]]]
    missing: Sequence[str]


def run_charts(run: Run) -> Charts:
    """Return the charts of a run's page."""
    history = run.history
    return _charts(
        run.headline, lambda panel: run_plot(panel, history), other_section(history.series)
    )


def sweep_charts(sweep: SweepRuns, colors: Sequence[str]) -> Charts:
    """Return the charts of a sweep's page: the first metric of each panel, with one curve per run."""
    return _charts(sweep.headline, lambda panel: _sweep_plot(panel, sweep, colors), without="areas")


def _charts(
    headline: Sequence[str],
    make: Callable[[Panel], Plot | None],
    *others: Section,
    without: str = "",
) -> Charts:
    """Make the charts of all sections: the task's headline metrics first, each panel only once."""
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
    """Make a run's plot of a panel; return ``None`` if there is no data."""
    traces, help = [], panel.help
    if panel.is_evaluated:
        traces = _evaluated(panel, history)
        help = f"{help} Large dots: the last evaluation of the policy, over all conditions.".strip()
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
    """Return per set the intermediate evaluations, and a large marker for the last one on all conditions."""
    # Intermediate evaluations measure the policy alone. So does the last evaluation of an E-step, but not
    # that of the following M-step, whose answer model changes R.
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
            # A run may evaluate again after resuming or in each round of EM: the last evaluation counts.
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
            traces.append(own | {"uid": f"run{number}"})  # Plotly uses it as a CSS class
    if not traces:
        return None
    help = "Mean over evaluation sets." if panel.is_evaluated else ""
    help = "On-policy batches; for runs without any, all batches." if source else help
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
    """Return the series as a list of one Plotly trace; empty if there are no values."""
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
    """Make a plot over optimizer steps.

    Args:
        help: text below the plot; a note is appended if points were left out.
        log: use a logarithmic y-axis, unless a value is negative or none is positive.
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
    """Reduce lines to means of k neighbors and dots to every k-th, rounded to six significant digits."""
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
