"""The page of a sweep: a table of its runs, their curves in shared charts, and the finished runs compared."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.report.page import plotly, render
from gfn_runner.report.plots import COLORS, sweep_charts
from gfn_runner.report.run_page import PAGE, refresh_of
from gfn_runner.report.summary import notes, results, sections
from gfn_runner.report.sweep_runs import SweepRuns, read_sweep, sweep_table
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import StateName


def write_sweep_page(folder: Path, known: Mapping[str, StateName] | None = None) -> Path:
    """Write ``report.html`` into a sweep's folder.

    Args:
        known: states reported by the runs' own processes, by folder name.

    Raises:
        OSError: if the page cannot be written; the previous page is kept.
    """
    sweep = read_sweep(folder, known)
    configs = [run.config for run in sweep.runs if run.config]
    refresh = None if sweep.has_ended else refresh_of(configs[0] if configs else {})
    content = _runs(sweep) | _comparison(sweep)
    text = render("sweep.html", written=time.time(), refresh=refresh, **content)
    write_atomically(folder / PAGE, text, durable=False)
    return folder / PAGE


def _runs(sweep: SweepRuns) -> dict[str, Any]:
    """Return the variables of the first half of ``templates/sweep.html``."""
    summary, record = sweep.summary, sweep.record
    left = [run.state.left for run in sweep.runs if run.state.left is not None]
    if left:
        summary += f" Training of those that are running ends in about {duration(max(left))}."
    names = dict.fromkeys(run.task_name for run in sweep.runs if run.config)
    command = shlex.join(["python", "-m", "gfn_runner", "-m", *record.overrides])
    colors = colors_of(sweep)
    labels = [sweep.label(run, without=["seed"]) or f"run {run.folder.name}" for run in sweep.runs]
    charts = sweep_charts(sweep, colors)
    place = "/".join(sweep.folder.resolve().parts[-2:])
    return {
        "title": f"Sweep: {', '.join(names) or 'no run yet'}, {place}",
        "summary": summary,
        "command": command if record.overrides else "",
        "best": sweep.best,
        "table": sweep_table(sweep),
        "runs": list(zip(sweep.runs, colors, strict=True)),
        "page": PAGE,
        "colors": dict(zip(labels, colors, strict=True)),
        "charts": charts,
        "plotly": plotly() if charts.sections else "",
    }


def colors_of(sweep: SweepRuns) -> list[str]:
    """Return a color for each run; runs that differ only in their seed share one."""
    settings = [sweep.label(run, without=["seed"]) or run.folder.name for run in sweep.runs]
    known = list(dict.fromkeys(settings))
    # With more settings than distinct colors, neighbors look similar: hues range from red to violet.
    n = max(1, len(known) - 1)
    hues = [f"hsl({300 * at / n:.0f},70%,42%)" for at in range(len(known))]
    chosen = dict(zip(known, COLORS if len(known) <= len(COLORS) else hues, strict=False))
    return [chosen[own] for own in settings]


def _comparison(sweep: SweepRuns) -> dict[str, Any]:
    """Return a report's tables for the runs that have finished."""
    runs = [run for run in sweep.runs if run.is_finished and run.config]
    content: dict[str, Any] = {"notes": [], "compared": [], "problem": ""}
    try:
        found = sections(runs)
        content["notes"] = notes(runs, found)
        content["compared"] = [(section.name, results(section)) for section in found]
    except UserError as error:
        content["problem"] = "; ".join(map(str, error.problems))
    content["again"] = f"python -m gfn_runner.report {shlex.quote(str(sweep.folder))}"
    return content
