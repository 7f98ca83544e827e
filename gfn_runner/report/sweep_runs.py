"""The runs of a sweep, begun or not, and the table of them: for its page, ``sweep.md`` and the terminal."""

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

_DIRECTION = "hydra.sweeper.direction="  # in the command of every search
_LONGEST_REASON = 300  # characters


@dataclass(frozen=True)
class SweepRuns:
    """A folder of runs.

    Attributes:
        record: of the sweep; an empty one if there is none that can be read.
        runs: in the order of their names; their overrides are those of the record where it has some.
    """

    folder: Path
    record: Sweep
    runs: Sequence[Run]

    @cached_property
    def settings(self) -> dict[Run, dict[str, str]]:
        """Of each run its overrides by key."""
        pairs = {run: [line.partition("=") for line in run.overrides] for run in self.runs}
        return {r: {key.lstrip("+~"): value for key, _, value in own} for r, own in pairs.items()}

    @cached_property
    def values(self) -> dict[str, float]:
        """What runs have returned, by the folder's name."""
        return {job.folder: job.value for job in self.record.jobs if job.value is not None}

    @cached_property
    def varied(self) -> list[str]:
        """Keys in which the runs differ; the seed last."""
        settings = list(self.settings.values())
        keys = dict.fromkeys(key for own in settings for key in own)
        found = [key for key in keys if len({own.get(key) for own in settings}) > 1]
        return sorted(found, key=lambda key: key == "seed")

    @property
    def headline(self) -> list[str]:
        """Metrics that the runs' tasks put first."""
        return list(dict.fromkeys(metric for run in self.runs for metric in run.headline))

    @property
    def summary(self) -> str:
        """How many runs are in which state."""
        counts = Counter(run.state.name for run in self.runs)
        return f"{len(self.runs)} runs: {', '.join(f'{n} {name}' for name, n in counts.items())}."

    @property
    def has_ended(self) -> bool:
        """Whether no run is under way and none is expected to begin.

        A sweep that was killed leaves no record of it: after a while without a change none is expected.
        """
        names = {run.state.name for run in self.runs}
        seen = max((run.state.seen for run in self.runs), default=0.0)
        more = self.record.searches or names & {"waiting", "submitted"}
        return "running" not in names and not (more and time.time() - seen < PATIENCE)

    def label(self, run: Run, *, without: Sequence[str] = ()) -> str:
        """The settings in which a run differs from the others."""
        own = self.settings[run]
        keys = (key for key in self.varied if key in own and key not in without)
        return ", ".join(f"{key}={rounded(own[key])}" for key in keys)

    @property
    def optimized(self) -> str:
        """The metric that the runs return; empty before the first has begun."""
        run = next((run for run in self.runs if run.config), None)
        if run is None:
            return ""
        own = getattr(imported(run.task), "optimized", "")
        return str(run.config.get("optimized_metric") or own or next(iter(run.headline), ""))

    @property
    def best(self) -> str:
        """The best job of a search so far, as a sentence; empty without a search or a value."""
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
    """The runs in a sweep's folder.

    Args:
        known: states from a run's own process, by the folder's name.
        record: of the sweep; ``None``: the one in the folder.
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
    # The sweep knows what its files cannot: that a job was killed, or waits in a queue.
    name = run.state.name
    tells = job.has_stopped or (name == "waiting" and job.state != "running")
    if known is None and name not in ("ok", "failed") and tells:
        run = replace(run, state=replace(run.state, name=job.state, why=job.why))
    return run


def sweep_table(sweep: SweepRuns) -> Table:
    """A row a run: name, state, varied settings, step, minutes, metrics, why.

    A metric is the mean over evaluation sets; with a star that of the newest evaluation on the way.
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
    """Final, or with a star the newest on the way; empty without either."""
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
    """Of evaluations on the way, at the steps that all sets have: steps and values."""
    own = [history.series[f"eval/{metric}/{group}"] for group in history.sets(f"eval/{metric}")]
    if not own:
        return [], []
    steps = sorted(set.intersection(*map(set, own)))
    return steps, [fmean(values[step] for values in own) for step in steps]
