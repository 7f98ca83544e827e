"""The runs of a sweep, started or not, and their table: for its page, ``sweep.md`` and the terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

from gfn_runner.errors import UserError
from gfn_runner.report.headline import headline_numbers
from gfn_runner.report.history import History
from gfn_runner.report.names import by_number, column_title
from gfn_runner.report.runs import Run, read_run
from gfn_runner.report.saved_config import imported
from gfn_runner.report.states import PATIENCE, State, state_without_config
from gfn_runner.report.table import Table, rounded, shown_number
from gfn_runner.runtime.sweep_record import Job, StateName, Sweep

_DIRECTION = "hydra.sweeper.direction="  # part of every search's command line
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class SweepRuns:
    """A folder of runs.

    Attributes:
        record: record of the sweep; an empty one if none can be read.
        runs: sorted by name; overrides are taken from the record if it has any.
    """

    folder: Path
    record: Sweep
    runs: Sequence[Run]

    @cached_property
    def settings(self) -> dict[Run, dict[str, str]]:
        """Overrides of each run, by key."""
        pairs = {run: [line.partition("=") for line in run.overrides] for run in self.runs}
        return {r: {key.lstrip("+~"): value for key, _, value in own} for r, own in pairs.items()}

    @cached_property
    def values(self) -> dict[str, float]:
        """Return values of the runs, by folder name."""
        return {job.folder: job.value for job in self.record.jobs if job.value is not None}

    @cached_property
    def varied(self) -> list[str]:
        """Keys in which the runs differ, the seed last."""
        settings = list(self.settings.values())
        keys = dict.fromkeys(key for own in settings for key in own)
        found = [key for key in keys if len({own.get(key) for own in settings}) > 1]
        return sorted(found, key=lambda key: key == "seed")

    @property
    def headline(self) -> list[str]:
        """Headline metrics of the runs' tasks."""
        return list(dict.fromkeys(metric for run in self.runs for metric in run.headline))

    @property
    def summary(self) -> str:
        """Number of runs in each state."""
        counts = Counter(run.state.name for run in self.runs)
        return f"{len(self.runs)} runs: {', '.join(f'{n} {name}' for name, n in counts.items())}."

    @property
    def has_ended(self) -> bool:
        """Whether no run is active and none is expected to start.

        A sweep that was killed cannot record it; after some time without changes, no further run is expected.
        """
        names = {run.state.name for run in self.runs}
        seen = max((run.state.seen for run in self.runs), default=0.0)
        more = self.record.searches or names & {"waiting", "submitted"}
        return "running" not in names and not (more and time.time() - seen < PATIENCE)

    def label(self, run: Run, *, without: Sequence[str] = ()) -> str:
        """Return the settings in which a run differs from the others."""
        own = self.settings[run]
        keys = (key for key in self.varied if key in own and key not in without)
        return ", ".join(f"{key}={rounded(own[key])}" for key in keys)

    @property
    def optimized(self) -> str:
        """The metric that the runs return; empty before the first run has started."""
        run = next((run for run in self.runs if run.config), None)
        if run is None:
            return ""
        own = getattr(imported(run.task), "optimized", "")
        return str(run.config.get("optimized_metric") or own or next(iter(run.headline), ""))

    @property
    def best(self) -> str:
        """The best run of a search so far, as a sentence; empty without a search or a value."""
        lines = self.record.overrides
        directions = [line.partition("=")[2] for line in lines if line.startswith(_DIRECTION)]
        if not directions or not self.values:
            return ""
        choose = min if directions[-1] == "minimize" else max
        name, value = choose(self.values.items(), key=lambda pair: pair[1])
        so_far = " so far" if self.record.searches else ""
        return f"Best of the search{so_far}: run {name}, {self.optimized} {value:.4g}."


def read_sweep(
    folder: Path,
    known: Mapping[str, StateName] | None = None,
    record: Sweep | None = None,
) -> SweepRuns:
    """Read the runs in a sweep's folder.

    Args:
        known: states reported by the runs' own processes, by folder name.
        record: record of the sweep; ``None`` reads it from the folder.
    """
    try:
        record = record or Sweep.read(folder)
    except UserError:
        record = Sweep(folder)
    jobs = {job.folder: job for job in record.jobs}
    names = {path.name for path in folder.iterdir() if _is_job(path)} | jobs.keys()
    runs = [
        _run(folder / name, jobs.get(name), (known or {}).get(name))
        for name in sorted(names, key=by_number)
    ]
    return SweepRuns(folder, record, runs)


def _is_job(path: Path) -> bool:
    return path.is_dir() and (path.name.isdecimal() or (path / "config.yaml").is_file())


def _run(folder: Path, job: Job | None, known: StateName | None) -> Run:
    run = Run(folder, {}, {}, state_without_config(folder))
    if (folder / "config.yaml").is_file():
        try:
            run = read_run(folder, known)
        except UserError as error:
            why = "; ".join(problem.what for problem in error.problems)
            run = replace(run, state=State("failed", why))
    if job is None:
        return run
    run = replace(run, overrides=tuple(job.overrides))
    # The sweep knows what a run's files don't: whether the job was killed or is queued.
    name = run.state.name
    tells = job.has_stopped or (name in ("waiting", "interrupted") and job.state != "running")
    if known is None and name not in ("ok", "failed") and tells:
        run = replace(run, state=replace(run.state, name=job.state, why=job.why))
    return run


def sweep_table(sweep: SweepRuns) -> Table:
    """Tabulate the runs: name, state, varied settings, step, minutes, metrics, reason of a failure.

    A metric is the mean over evaluation sets; a star marks values of the newest intermediate evaluation.
    """
    metrics = [own for own in dict.fromkeys([sweep.optimized, *sweep.headline]) if own]
    rows = []
    for run in sweep.runs:
        own, state = sweep.settings[run], run.state
        rows.append(
            [
                run.folder.name,
                state.name,
                *(rounded(own.get(key, "")) for key in sweep.varied),
                f"{state.step or 0}/{state.steps}" if state.steps else "",
                _minutes(run),
                *(_value(sweep, run, metric) for metric in metrics),
                state.why[:_LONGEST_REASON],
            ]
        )
    header = ["run", "state", *sweep.varied, "step", "minutes", *map(column_title, metrics), "why"]
    return Table(header, rows).without_empty()


def _value(sweep: SweepRuns, run: Run, metric: str) -> str:
    """Format the final value, or the newest intermediate one with a star; empty without either."""
    value = sweep.values.get(run.folder.name)
    if value is not None and metric == sweep.optimized:
        return shown_number(metric, value)
    if run.is_finished:
        found = headline_numbers([metric], run.metrics)
        return shown_number(metric, found[metric]) if found else ""
    values = mean_over_sets(run.history, metric)[1]
    return f"{shown_number(metric, values[-1])}*" if values else ""


def _minutes(run: Run) -> str:
    if run.is_finished and "run/minutes" in run.metrics:
        return f"{run.metrics['run/minutes']:.1f}"
    seconds = run.state.seconds
    return "" if seconds is None else f"{seconds / 60:.1f}"


def mean_over_sets(history: History, metric: str) -> tuple[list[int], list[float]]:
    """Return steps and mean values of intermediate evaluations, at the steps that all sets share."""
    own = [history.series[f"eval/{metric}/{group}"] for group in history.sets(f"eval/{metric}")]
    if not own:
        return [], []
    steps = sorted(set.intersection(*map(set, own)))
    return steps, [fmean(values[step] for values in own) for step in steps]
