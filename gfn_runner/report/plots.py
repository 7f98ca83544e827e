"""Plotly figures of panels, as plain dictionaries for ``Plotly.newPlot``.

Plotly's own Python objects validate every value and take a second for a page; a page is written at every
evaluation. What all figures have in common (margins, fonts, grid) is in ``templates/page.js``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    loss_name,
    other_section,
    scale_of,
)
from gfn_runner.report.runs import Run, callback_arguments, trains

COLORS = (
    "#1f77b4", "#d95f02", "#2a9d4a", "#c2304a", "#7b5ea7",
    "#8c564b", "#e377c2", "#6b6b6b", "#a6a01c", "#17a2b8",
)  # fmt: skip
_SOURCE_COLORS = dict(zip(SOURCES, (COLORS[0], COLORS[1], "#9a9a9a"), strict=True))
# Above this many, lines are drawn as means of neighbours and of dots each k-th is drawn.
MOST_POINTS = 240
_PARTS = 24  # of a run, of whose batches the share from replay is drawn
_FEW = 24  # points that get a marker each, so that evaluations can be told apart
_MOST_DECADES = 6  # of a logarithmic axis

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


def page_sections(headline: Sequence[str]) -> list[Section]:
    """The sections of a page: the task's own metrics first, and each panel once."""
    first = headline_section(tuple(headline))
    shown = set(first.panels) if first else set()
    rest = [
        Section(own.name, own.text, tuple(p for p in own.panels if p.on_pages and p not in shown))
        for own in SECTIONS
    ]
    return [*([first] if first else []), *(section for section in rest if section.panels)]


def plots_of(
    sections: Iterable[Section], make: Callable[[Panel], Plot | str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Sections as the templates have them, with every plot that there is data for.

    Args:
        make: a panel's plot, or why there is none; without a reason the panel is passed over.
    """
    drawn, missing = [], []
    for section in sections:
        made = [make(panel) for panel in section.panels]
        missing += [reason for reason in made if isinstance(reason, str) and reason]
        if plots := [plot for plot in made if isinstance(plot, Plot)]:
            drawn.append({"name": section.name, "text": section.text, "plots": plots})
    return drawn, missing


def run_plots(run: Run, history: History) -> tuple[list[dict[str, Any]], list[str]]:
    """The plots of a run's page, and why others have no data; see :func:`plots_of`."""

    def make(panel: Panel) -> Plot | str:
        made = run_plot(panel, run, history)
        return f"{panel.named.title}: {made}." if isinstance(made, str) else made

    return plots_of((*page_sections(run.headline), other_section(history.series)), make)


def run_plot(panel: Panel, run: Run, history: History) -> Plot | str:
    """A run's plot of a panel; or why there is none."""
    name, extra = panel.named, ""
    if panel.of_buffer and (reason := _no_buffer(run, history)):
        return reason
    if panel.is_evaluated:
        traces, extra = _evaluated(panel, history)
    elif panel.kind == "by_source":
        traces, extra = _by_source(panel.metrics[0], run.baseline, history)
    else:
        traces = [
            trace
            for at, metric in enumerate(panel.metrics)
            if (trace := _line(panel, metric, at, history))
        ]
    if not traces:
        return _absent(panel, run, history)
    if panel.metrics == ("train/loss",):
        name = loss_name(run.baseline)
    most = _PARTS if panel.metrics == ("train/from_replay",) else MOST_POINTS
    return plot(name, traces, help=f"{panel.help} {extra}".strip(), log=panel.log, most=most)


def _no_buffer(run: Run, history: History) -> str:
    if run.baseline is not None:
        return f"{run.baseline} has no replay buffer"
    sizes = history.get("train/buffer_size")[1]
    return "the buffer has held no string" if sizes and not any(sizes) else ""


def _absent(panel: Panel, run: Run, history: History) -> str:
    """Why a panel has no data."""
    if not trains(run.config):
        return "the run trains nothing"
    if not panel.is_evaluated:
        return panel.absent if history.times else "no optimizer step yet"
    if any(name.startswith(("eval/", "final/")) for name in history.series):
        return panel.absent
    if callback_arguments(run.config, "evaluation").get("every_n_steps") == 0:
        return "not evaluated yet, and callbacks.evaluation.every_n_steps=0: only at the end"
    return "not evaluated yet"


# -- traces -----------------------------------------------------------------------------------------


def trace(x: Sequence[float], y: Sequence[float], label: str, color: str, **more: Any) -> Trace:
    """A line of Plotly; ``more`` are its own attributes."""
    line = {"color": color, "width": 1.5} | more.pop("line", {})
    return {"x": x, "y": y, "name": label, "mode": "lines", "line": line, **more}


def dots(x: Sequence[float], y: Sequence[float], label: str, color: str, size: float = 4) -> Trace:
    marker = {"color": color, "size": size}
    return {"x": x, "y": y, "name": label, "mode": "markers", "marker": marker}


def _line(panel: Panel, metric: str, at: int, history: History) -> Trace | None:
    """A training scalar; its colour is its place's, whichever of the panel's metrics a run has."""
    steps, values = history.get(metric)
    if not values:
        return None
    label = panel.labels[at] if panel.labels else panel.named.title
    color = COLORS[at % len(COLORS)]
    if panel.kind == "dots":
        return dots(steps, values, label, color)
    if panel.kind == "areas":
        return trace(steps, values, label, color, stackgroup="all", line={"width": 0})
    return trace(steps, values, label, color)


# What these methods log as drawn from a buffer is not a replay buffer's.
_ROLLOUTS = {"on-policy": "fresh rollout", "replay": "rollout used before"}
_OF_BASELINES = {"SFT": {"replay": "known strings"}, "PPO": _ROLLOUTS, "GRPO": _ROLLOUTS}


def _by_source(metric: str, baseline: str | None, history: History) -> tuple[list[Trace], str]:
    """Dots by where the strings came from; a line where no step is of one source alone."""
    labels = _OF_BASELINES.get(baseline or "", {})
    traces = []
    for source in SOURCES:
        steps, values = history.get(metric, source)
        if values:
            traces.append(dots(steps, values, labels.get(source, source), _SOURCE_COLORS[source]))
    if not traces:
        steps, values = history.get(metric)
        label = "fresh and replayed strings together"
        return ([trace(steps, values, label, COLORS[0])] if values else []), ""
    several = baseline is None and traces[-1]["name"] != SOURCES[0]
    return traces, "The policy hardly writes tempered and replayed strings." * several


def _evaluated(panel: Panel, history: History) -> tuple[list[Trace], str]:
    """By evaluation set: evaluations on the way, and large markers of the last one, of all conditions."""
    # Evaluations on the way are of the policy alone: so is the last one of an E-step, which an M-step
    # follows, whose answer model has another R.
    end = "e_step" if any(n.startswith("e_step/") for n in history.series) else "final"
    bare = [evaluated(metric) for metric in panel.metrics]
    kinds = [f"{kind}/{metric}" for metric in bare for kind in ("eval", end)]
    sets = dict.fromkeys(group for kind in kinds for group in history.sets(kind))
    traces, marked = [], False
    for place, group in enumerate(sets):
        color = COLORS[place % len(COLORS)]
        for at, metric in enumerate(bare):
            label = readable(group) + (f", {panel.labels[at]}" if panel.labels else "")
            scale = scale_of(panel.metrics[at])
            steps, values = history.get(f"eval/{metric}/{group}")
            if values:
                own = [scale * value for value in values]
                dash = {"dash": ("solid", "dash", "dot")[at % 3]}
                traces.append(trace(steps, own, label, color, line=dash))
            steps, values = history.get(f"{end}/{metric}/{group}")
            if values:
                # Evaluated again after resuming, or in each round of EM: the last one counts.
                last = dots(steps[-1:], [scale * values[-1]], f"{label}, all conditions", color, 9)
                traces.append(last | {"showlegend": False})
                marked = True
    return traces, _LARGE[end] if marked else ""


_LARGE = {
    "final": "Large dots: the last evaluation, of all conditions.",
    "e_step": "Large dots: the policy of the last E-step, of all conditions. After the M-step R is "
    "another: see E + M in the table.",
}


# -- figures ----------------------------------------------------------------------------------------


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
        help: below it; what was left out of the figure is added.
        log: a logarithmic y-axis, unless a value is below 0 or none is above it.
    """
    for mode, text in (("lines", "Means of"), ("markers", "One dot in")):
        longest = max((len(own["x"]) for own in traces if own["mode"] == mode), default=0)
        if longest > most:
            help = f"{help} {text} {math.ceil(longest / most)} steps.".strip()
    shown = [_thinned(own, most) for own in traces]
    values = [value for own in shown for value in own["y"]]
    layout: dict[str, Any] = {"showlegend": len(shown) > 1}
    if log and min(values) >= 0 and max(values) > 0:
        low, high = log_floor(values), max(values)
        ends = [round(math.log10(low) - 0.05, 3), round(math.log10(high) + 0.05, 3)]
        layout["yaxis"] = {"type": "log", "range": ends}
        if below := sum(value < low for value in values):
            help = f"{help} {below} of the values lie below the axis.".strip()
    elif name.range is not None:
        low, high = name.range
        layout["yaxis"] = {"minallowed": low - 0.02 * (high - low), "maxallowed": high * 1.02}
    return Plot(name.with_unit, {"data": shown, "layout": layout}, help)


def log_floor(values: Sequence[float]) -> float:
    """The lowest value that a logarithmic axis shows: a few tiny ones would squeeze all others."""
    return max(min(v for v in values if v > 0), max(values) * 10.0**-_MOST_DECADES)


def _thinned(own: Trace, most: int) -> Trace:
    """At most so many points: of lines means of neighbours, of dots each k-th; to six digits."""
    k = math.ceil(len(own["x"]) / most)
    if own["mode"] == "markers":
        x, y = own["x"][::k], own["y"][::k]
    else:
        x, y = _means(own["x"], k), _means(own["y"], k)
    mode = "lines+markers" if own["mode"] == "lines" and len(x) <= _FEW else own["mode"]
    if "stackgroup" in own:
        mode = "lines"
    return own | {"x": list(map(_brief, x)), "y": list(map(_brief, y)), "mode": mode}


def _means(values: Sequence[float], k: int) -> Sequence[float]:
    return [fmean(values[start : start + k]) for start in range(0, len(values), k)]


def _brief(value: float) -> float:
    return int(value) if value == int(value) else float(f"{value:.6g}")
