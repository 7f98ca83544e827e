"""How far runs and the jobs of sweeps are: ok, running, failed and why, …, as their folders have it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gfn_runner.errors import UserError
from gfn_runner.report.history import History
from gfn_runner.report.names import by_number
from gfn_runner.report.runs import Run, failure, newest_of, read_run, steps_wanted
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import Job, Sweep

StateName = Literal["ok", "running", "interrupted", "failed", "silent", "not begun"]

_BADGES = {"ok": "good", "running": "busy", "failed": "bad", "not begun": "none"}
# A run that writes nothing for longer than this, and than twenty of its steps, is silent.
PATIENCE = 900.0
_DIRECTION = "hydra.sweeper.direction="  # in the command of every search
_ENDED: Mapping[str, StateName] = {
    "failed": "failed",
    "cancelled": "failed",
    "timed out": "failed",
    "interrupted": "interrupted",
}
_WRITTEN = ("metrics.jsonl", "run.log", "samples_newest.jsonl", "metrics.json")


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        name: ``silent`` is a run that has not ended and has written nothing for long.
        step: last optimizer step; ``None`` before the first, and of a run that trains nothing.
        steps: optimizer steps of the whole run; ``None`` if it trains nothing.
        began: seconds since 1970 at which its newest part began; 0 if that is unknown.
        seen: seconds since 1970 at which it has last written something; 0 for never.
        left: seconds until its training ends; ``None`` if unknown.
    """

    name: StateName
    why: str = ""
    step: int | None = None
    steps: int | None = None
    began: float = 0.0
    seen: float = 0.0
    left: float | None = None
    seconds_per_step: float | None = None

    @property
    def badge(self) -> str:
        """The class of its badge in ``page.css``."""
        return _BADGES.get(self.name, "odd")

    @property
    def has_ended(self) -> bool:
        """Whether the folder is not expected to change any more."""
        return self.name not in ("running", "not begun")

    @property
    def seconds(self) -> float | None:
        """Since the newest part began; ``None`` if that is unknown."""
        if not self.began:
            return None
        return max(0.0, (time.time() if self.name == "running" else self.seen) - self.began)


def state_of(run: Run, history: History, state_name: StateName | None = None) -> State:
    """The state of a run's folder.

    Args:
        state_name: from the run's own process, which counts unless the files say "failed".
    """
    began = newest_of(run.folder.glob("environment*.json"))
    seen = max(began, newest_of(run.folder / name for name in _WRITTEN))
    pace = history.seconds_per_step(since=began)
    steps, step = steps_wanted(run.config), history.last_step
    found, why = _name(run, seen, pace)
    if state_name is not None and found != "failed":
        found, why = state_name, ""
    left = None
    if found == "running" and pace is not None and steps is not None and step is not None:
        left = pace * max(0, steps - step)
    return State(found, why, step, steps, began, seen, left, pace)


def _name(run: Run, seen: float, pace: float | None) -> tuple[StateName, str]:
    if run.status == "finished":
        return "ok", ""
    if run.status == "failed":
        return "failed", failure(run.folder)
    silent = time.time() - seen
    if silent < max(PATIENCE, 20 * (pace or 0.0)):
        return "running", ""
    return "silent", f"nothing written for {duration(silent)}: interrupted, or at a long evaluation"


def state_without_config(folder: Path) -> State:
    """Of a job's folder in which no run has written its config: not begun, or failed before that."""
    reason, seen = failure(folder), newest_of([folder / "run.log"])
    return State("failed", reason, seen=seen) if reason else State("not begun", seen=seen)


# -- sweeps ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class JobPage:
    """A job of a sweep, begun or not, as the sweep's page shows it.

    Attributes:
        run: ``None`` as long as there is no config in its folder.
    """

    name: str
    overrides: Mapping[str, str]
    run: Run | None
    history: History
    state: State


class SweepJobs:
    """A folder of runs. Reading it again costs only what was written since.

    Attributes:
        record: of the sweep; an empty one if there is none that can be read.
        jobs: in the order of their names, as of the last time that it was read.
        varied: keys in which the jobs differ; the seed last.
    """

    def __init__(self, folder: Path):
        self.folder, self.record = folder, Sweep(folder)
        self.jobs: list[JobPage] = []
        self.varied: list[str] = []
        self._histories: dict[str, History] = {}

    def read(self, state_names: Mapping[str, StateName] | None = None) -> SweepJobs:
        """Look through the folder."""
        try:
            self.record = Sweep.read(self.folder)
        except UserError:
            self.record = Sweep(self.folder)
        recorded = {job.folder: job for job in self.record.jobs}
        names = {path.name for path in self.folder.iterdir() if _is_job(path)} | recorded.keys()
        self.jobs = [
            self._job(name, recorded.get(name), (state_names or {}).get(name))
            for name in sorted(names, key=by_number)
        ]
        keys = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        found = [key for key in keys if len({job.overrides.get(key) for job in self.jobs}) > 1]
        self.varied = sorted(found, key=lambda key: key == "seed")
        return self

    def _job(self, name: str, recorded: Job | None, state_name: StateName | None) -> JobPage:
        folder = self.folder / name
        history = self._histories.setdefault(name, History(folder / "metrics.jsonl"))
        run, state = None, state_without_config(folder)
        if (folder / "config.yaml").is_file():
            try:
                run = read_run(folder)
                state = state_of(run, history.read(), state_name)
            except UserError as error:
                state = State("failed", "; ".join(problem.what for problem in error.problems))
        if recorded is not None and state_name is None and state.name not in ("ok", "failed"):
            # The sweep knows what its files cannot: that a job was killed, or never began.
            ended = _ENDED.get(recorded.state)
            state = replace(state, name=ended, why=recorded.why) if ended else state
        lines = recorded.overrides if recorded else run.overrides if run else ()
        pairs = (line.partition("=") for line in lines)
        overrides = {key.lstrip("+~"): value for key, _, value in pairs}
        return JobPage(name, overrides, run, history, state)

    @property
    def has_ended(self) -> bool:
        """Whether no job is running and none is expected to begin.

        A sweep that was killed leaves no record of it: after a while without a change none is expected.
        """
        state_names = {job.state.name for job in self.jobs}
        seen = max((job.state.seen for job in self.jobs), default=0.0)
        more = self.record.searches or "not begun" in state_names
        return "running" not in state_names and not (more and time.time() - seen < PATIENCE)

    def best(self) -> tuple[str, float] | None:
        """Name and value of a search's best job so far; ``None`` without a search or a value."""
        lines = self.record.overrides
        directions = [line.partition("=")[2] for line in lines if line.startswith(_DIRECTION)]
        values = {job.folder: job.value for job in self.record.jobs if job.value is not None}
        if not directions or not values:
            return None
        choose = min if directions[-1] == "minimize" else max
        name = choose(values, key=lambda name: values[name])
        return name, values[name]

    def values(self, keys: Sequence[str]) -> list[tuple[str, ...]]:
        """The different values of some keys, in the order of jobs."""
        return list(dict.fromkeys(values_of(job, keys) for job in self.jobs))


def values_of(job: JobPage, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(job.overrides.get(key, "") for key in keys)


def _is_job(path: Path) -> bool:
    return path.is_dir() and (path.name.isdecimal() or (path / "config.yaml").is_file())
