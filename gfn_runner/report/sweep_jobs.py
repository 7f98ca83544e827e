"""The jobs of a sweep, as its record (``sweep.json``) and the folders of its runs have them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gfn_runner.errors import UserError
from gfn_runner.report.history import History
from gfn_runner.report.runs import Run, read_run
from gfn_runner.report.states import PATIENCE, State, StateName, state_of, state_without_config
from gfn_runner.runtime import sweep_record as record

_HYDRA_FILE = "multirun.yaml"
_DIRECTION = "hydra.sweeper.direction="  # in the command of every search
_ENDED: Mapping[str, StateName] = {
    "failed": "failed",
    "cancelled": "failed",
    "timed out": "failed",
    "interrupted": "interrupted",
}


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


def is_sweep(folder: Path) -> bool:
    """Whether the folder was made for a sweep, or for a search."""
    return any((folder / name).is_file() for name in (_HYDRA_FILE, record.RECORD))


class SweepJobs:
    """A folder of runs. Reading it again costs only what was written since.

    Attributes:
        record: of the sweep; an empty one if there is none that can be read.
        jobs: in the order of their names, as of the last time that it was read.
    """

    def __init__(self, folder: Path):
        self.folder, self.record = folder, record.Sweep(folder)
        self.jobs: list[JobPage] = []
        self._histories: dict[str, History] = {}

    def read(self, state_names: Mapping[str, StateName] | None = None) -> SweepJobs:
        """Look through the folder."""
        try:
            self.record = record.Sweep.read(self.folder)
        except UserError:
            self.record = record.Sweep(self.folder)
        recorded = {job.folder: job for job in self.record.jobs}
        names = {path.name for path in self.folder.iterdir() if _is_job(path)} | recorded.keys()
        self.jobs = [
            self._job(name, recorded.get(name), (state_names or {}).get(name))
            for name in sorted(names, key=_in_order)
        ]
        return self

    def _job(self, name: str, recorded: record.Job | None, state_name: StateName | None) -> JobPage:
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
        return JobPage(name, dict(map(_key_and_value, lines)), run, history, state)

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

    def varied(self) -> list[str]:
        """Keys in which the jobs differ; the seed last."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        found = [key for key in keys if len({job.overrides.get(key) for job in self.jobs}) > 1]
        return sorted(found, key=lambda key: key == "seed")

    def values(self, keys: Sequence[str]) -> list[tuple[str, ...]]:
        """The different values of some keys, in the order of jobs."""
        return list(dict.fromkeys(values_of(job, keys) for job in self.jobs))


def values_of(job: JobPage, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(job.overrides.get(key, "") for key in keys)


def _is_job(path: Path) -> bool:
    return path.is_dir() and (path.name.isdecimal() or (path / "config.yaml").is_file())


def _in_order(name: str) -> tuple[object, ...]:
    """Numbers by their value, within names too."""
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name))


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.lstrip("+~"), value
