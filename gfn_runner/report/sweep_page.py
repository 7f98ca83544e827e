"""A sweep's page: a table of its runs, their curves in common charts, and the finished ones compared."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.report.compose import results, section_content
from gfn_runner.report.headline import headline_numbers
from gfn_runner.report.history import SOURCES, History
from gfn_runner.report.names import column_title
from gfn_runner.report.page import plotly, render
from gfn_runner.report.panels import Panel, evaluated, loss_name, panel_name, scale_of
from gfn_runner.report.plots import COLORS, Plot, Trace, dots, page_sections, plot, plots_of, trace
from gfn_runner.report.run_page import PAGE, refresh_of
from gfn_runner.report.states import JobPage, StateName, SweepJobs, values_of
from gfn_runner.report.summary import notes, sections, task_of
from gfn_runner.report.table import rounded, shown_number
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.status import duration

# Of more methods than this the comparison is a table alone: a figure has a part for each of them.
_MOST_METHODS = 12
_MOST_COLORS = len(COLORS)
_LONGEST_REASON = 160  # characters
_MOST_POINTS = 60  # of a curve of training: of many runs the trend is to be seen


def write_sweep_page(
    sweep: SweepJobs,
    state_names: Mapping[str, StateName] | None = None,
    *,
    whole: bool = False,
) -> Path:
    """Write ``report.html`` into a sweep's folder.

    Args:
        state_names: states from a job's own process, by the job's name.
        whole: with the figures and samples of the comparison, which take seconds, also while a job is
            running or still to come.

    Raises:
        OSError: if the page cannot be written; the one before is left.
    """
    sweep.read(state_names)
    has_ended = sweep.has_ended
    configs = [job.run.config for job in sweep.jobs if job.run]
    refresh = None if has_ended else refresh_of(configs[0] if configs else {})
    live = {"refresh": refresh, "written": time.time(), "due": None}
    page = sweep.folder / PAGE
    with tempfile.TemporaryDirectory(prefix="gfn-runner-") as made:
        content = _runs(sweep) | _comparison(sweep, Path(made), whole or has_ended)
        write_atomically(page, render("sweep.html", live=live, **content), durable=False)
    return page


def _runs(sweep: SweepJobs) -> dict[str, Any]:
    """The values of the first half of ``templates/sweep.html``."""
    names = dict.fromkeys(job.run.task_name for job in sweep.jobs if job.run)
    counts = Counter(job.state.name for job in sweep.jobs)
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    summary = f"{len(sweep.jobs)} runs: {states}."
    left = [job.state.left for job in sweep.jobs if job.state.left is not None]
    if left:
        summary += f" Training of those that are running ends in about {duration(max(left))}."
    command = ["python", "-m", "gfn_runner", "-m", *sweep.record.overrides]
    colors, legend = colors_of(sweep)
    plots, missing = _plots(sweep, colors)
    place = "/".join(sweep.folder.resolve().parts[-2:])
    return {
        "title": f"Sweep: {', '.join(names) or 'no run yet'}, {place}",
        "summary": summary,
        "command": shlex.join(command) if sweep.record.overrides else "",
        "best": _best(sweep),
        **_table(sweep, colors),
        "colors": legend,
        "sections": plots,
        "missing": missing,
        "plotly": plotly() if plots else "",
    }


def _best(sweep: SweepJobs) -> str:
    best = sweep.best()
    if best is None:
        return ""
    run = next((job.run for job in sweep.jobs if job.run), None)
    name = "value"
    if run is not None:
        task, _ = task_of(run)
        own = task and (task.optimized or next(iter(task.headline), ""))
        name = str(run.config.get("optimized_metric") or own or name)
    so_far = " so far" if sweep.record.searches else ""
    return f"Best of the search{so_far}: run {best[0]}, {name} {best[1]:.4g}."


# -- the table --------------------------------------------------------------------------------------


def _table(sweep: SweepJobs, colors: Mapping[str, str]) -> dict[str, Any]:
    varied, metrics = sweep.varied, _headline(sweep)
    has_why = any(job.state.why for job in sweep.jobs)
    rows, on_the_way = [], False
    for job in sweep.jobs:
        values = [_value(job, metric) for metric in metrics]
        on_the_way |= any(value.endswith("*") for value in values)
        cells = [
            *(rounded(job.overrides.get(key, "")) for key in varied),
            f"{job.state.step or 0}/{job.state.steps}" if job.state.steps else "",
            _minutes(job),
            *values,
            *([job.state.why[:_LONGEST_REASON]] if has_why else []),
        ]
        link = f"{job.name}/{PAGE}" if job.run else ""
        row = {"name": job.name, "link": link, "color": colors[job.name], "uid": _uid(sweep, job)}
        rows.append(row | {"state": job.state, "cells": cells})
    text = "; with a star: of the newest evaluation on the way, of fewer conditions" * on_the_way
    titles = [column_title(metric) for metric in metrics]
    return {
        "header": ["run", "state", *varied, "step", "minutes", *titles, *["why"] * has_why],
        "rows": rows,
        "metrics_text": f"Metrics are means over evaluation sets{text}." if metrics else "",
    }


def _uid(sweep: SweepJobs, job: JobPage) -> str:
    """Of a run's row and its curves in all charts; Plotly makes a CSS class of it."""
    return f"run{sweep.jobs.index(job)}"


def _headline(sweep: SweepJobs) -> list[str]:
    return list(dict.fromkeys(m for job in sweep.jobs if job.run for m in job.run.headline))


def _value(job: JobPage, metric: str) -> str:
    """Final, or with a star the newest on the way; empty without either."""
    if job.run is not None and job.state.name == "ok":
        found = headline_numbers([metric], job.run.metrics)
        return shown_number(metric, found[metric]) if found else ""
    _, values = _mean_over_sets(job.history, metric)
    return f"{shown_number(metric, values[-1])}*" if values else ""


def _minutes(job: JobPage) -> str:
    if job.run is not None and job.state.name == "ok" and "run/minutes" in job.run.metrics:
        return f"{job.run.metrics['run/minutes']:.1f}"
    seconds = job.state.seconds
    return "" if seconds is None else f"{seconds / 60:.1f}"


# -- curves -----------------------------------------------------------------------------------------


def colors_of(sweep: SweepJobs) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """A colour for each job, and what colours mean.

    Jobs that differ in their seed alone share one. Where there are more settings than colours that one
    can tell apart, one varied setting is shown; where none is fit for it, the order of jobs.
    """
    keys = [key for key in sweep.varied if key != "seed"]
    single = sorted(([key] for key in keys), key=lambda own: -len(sweep.values(own)))
    for own in [keys, *single]:
        values = sweep.values(own)
        if own and 2 <= len(values) <= _MOST_COLORS:
            color = dict(zip(values, COLORS, strict=False))
            legend = [(color[value], _setting(own, value)) for value in values]
            return {job.name: color[values_of(job, own)] for job in sweep.jobs}, legend
    n = len(sweep.jobs)
    if n <= _MOST_COLORS:
        each = dict(zip((job.name for job in sweep.jobs), COLORS, strict=False))
        return each, [(each[job.name], _label(job, sweep.varied)) for job in sweep.jobs]
    # From red to violet.
    hues = {job.name: f"hsl({300 * i / (n - 1):.0f},70%,42%)" for i, job in enumerate(sweep.jobs)}
    first, last = sweep.jobs[0].name, sweep.jobs[-1].name
    return hues, [(hues[first], f"run {first}, and by hue up to"), (hues[last], f"run {last}")]


def _setting(keys: Sequence[str], values: Sequence[str]) -> str:
    pairs = (f"{key}={rounded(value)}" for key, value in zip(keys, values, strict=True))
    return ", ".join(pairs)


def _label(job: JobPage, varied: Sequence[str]) -> str:
    own = [key for key in varied if key in job.overrides]
    settings = _setting(own, [job.overrides[key] for key in own])
    return f"run {job.name}" + (f": {settings}" if settings else "")


def _plots(sweep: SweepJobs, colors: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """All runs' curves in each panel that is made for sweeps; and the panels without data."""
    headline = _headline(sweep)

    def make(panel: Panel) -> Plot | str:
        first = panel.metrics[0]
        metric = panel.in_sweep or (first if evaluated(first) in headline else "")
        if not metric:
            return ""
        if made := _plot(panel, metric, sweep, colors):
            return made
        logged = "evaluated it on the way" if panel.is_evaluated else f"logged {metric}"
        return f"{panel_name(metric).with_unit}: no run has {logged}."

    return plots_of(page_sections(headline), make)


def _plot(panel: Panel, metric: str, sweep: SweepJobs, colors: Mapping[str, str]) -> Plot | None:
    """One metric's curves, one a run; ``None`` if no run has logged it."""
    name, help, scale = panel_name(metric), "", scale_of(metric)
    if panel.kind == "by_source":
        help = "On-policy batches; of runs without any, all batches."
    elif any(len(job.history.sets(metric.removesuffix("/*"))) > 1 for job in sweep.jobs):
        help = "Mean over evaluation sets."
    if metric == "train/loss":
        methods = {job.run.baseline for job in sweep.jobs if job.run}
        name = loss_name(methods.pop()) if len(methods) == 1 else loss_name("several")
    draw = dots if panel.kind == "dots" else trace
    traces: list[Trace] = []
    for job in sweep.jobs:
        x, y = _series(panel, metric, job.history)
        if y:
            y = [scale * value for value in y]
            own = draw(x, y, _label(job, sweep.varied), colors[job.name])
            traces.append(own | {"uid": _uid(sweep, job)})
    if not traces:
        return None
    made = plot(name, traces, help=help, log=panel.log, most=_MOST_POINTS)
    made.figure["layout"]["showlegend"] = False
    return made


def _series(panel: Panel, metric: str, history: History) -> tuple[list[int], list[float]]:
    if panel.is_evaluated:
        return _mean_over_sets(history, evaluated(metric))
    # What the policy itself writes: tempered and replayed strings are other populations.
    own = history.get(metric, SOURCES[0] if panel.kind == "by_source" else None)
    return own if own[1] else history.get(metric)


def _mean_over_sets(history: History, metric: str) -> tuple[list[int], list[float]]:
    """Of evaluations on the way, at the steps that all sets have."""
    own = [history.series[f"eval/{metric}/{group}"] for group in history.sets(f"eval/{metric}")]
    if not own:
        return [], []
    steps = sorted(set.intersection(*map(set, own)))
    return steps, [fmean(values[step] for values in own) for step in steps]


# -- the finished ones ------------------------------------------------------------------------------


def _comparison(sweep: SweepJobs, made: Path, whole: bool) -> dict[str, Any]:
    """What a report across runs has on those that have finished."""
    runs = [job.run for job in sweep.jobs if job.run and job.run.status == "finished"]
    content: dict[str, Any] = {"notes": [], "compared": [], "problem": ""}
    try:
        found = sections(runs)
        content["notes"] = notes(runs, found)
        for section in found:
            if whole and len(section.methods) <= _MOST_METHODS:
                from gfn_runner.report.method_figures import draw

                part = section_content(section, *draw(section, made), sweep.folder)
            else:
                why = "it has many methods" if whole else "the sweep goes on"
                again = f"python -m gfn_runner.report {shlex.quote(str(sweep.folder))}"
                text = f"Without figures and samples, since {why}; they come from: {again}"
                part = {"name": section.name, "results": results(section), "only_results": text}
            content["compared"].append(part)
    except UserError as error:
        content["problem"] = "; ".join(map(str, error.problems))
    return content
