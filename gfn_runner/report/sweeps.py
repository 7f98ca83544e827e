"""The jobs of a sweep: which there are and will be, what sets them apart, how far each is."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gfn_runner.errors import UserError
from gfn_runner.report.history import History
from gfn_runner.report.runs import Run, read_run
from gfn_runner.report.states import PATIENCE, State, Word, state_of, state_without_config

_SWEEP_FILE = "multirun.yaml"  # of Hydra's own sweeper, written before the first job
_RECORD = "sweep.json"  # ours, of a search too: see gfn_runner/sweeps/record.py
_DIRECTION = "hydra.sweeper.direction="  # every search's command says it


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep, begun or not.

    Attributes:
        name: of its folder.
        folder: where it is or will be.
        said: its overrides, key to value.
        run: what its folder holds; ``None`` as long as there is no config in it.
        history: its scalars.
        state: how far it is.
    """

    name: str
    folder: Path
    said: Mapping[str, str]
    run: Run | None
    history: History
    state: State


def is_sweep(folder: Path) -> bool:
    """Whether the folder was made for a sweep, or for a search."""
    return any((folder / name).is_file() for name in (_SWEEP_FILE, _RECORD))


@dataclass
class Sweep:
    """A folder of runs. Reading it again costs only what was written since.

    Attributes:
        folder: of the sweep.
        jobs: in the order of their numbers, as of the last time that it was read.
        command: override lines of the sweep; empty where they are not known.
        searches: whether it is a search that has not said that it has ended: more jobs may come.
        values: what jobs have returned, to a search for one, by their names.
    """

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    command: Sequence[str] = ()
    searches: bool = False
    values: Mapping[str, float] = field(default_factory=dict)
    _histories: dict[str, History] = field(default_factory=dict)

    def read(self, told: Mapping[str, Word] | None = None) -> Sweep:
        """Look through the folder.

        Args:
            told: states that a job's own process knows, by the job's name.
        """
        self.command, planned = _planned(self.folder / _SWEEP_FILE)
        # The sweep's own record knows the folders, whatever they are called.
        record = _record(self.folder / _RECORD)
        planned = dict(record.jobs) or planned
        self.command = self.command or record.command
        self.searches, self.values = record.searches, record.values
        names = {path.name for path in self.folder.iterdir() if _is_job(path)} | planned.keys()
        self.jobs = [
            self._job(name, planned.get(name), (told or {}).get(name))
            for name in sorted(names, key=_in_order)
        ]
        return self

    def _job(self, name: str, lines: Sequence[str] | None, told: Word | None) -> Job:
        folder = self.folder / name
        history = self._histories.setdefault(name, History(folder / "metrics.jsonl"))
        run, state = None, state_without_config(folder)
        if (folder / "config.yaml").is_file():
            try:
                run = read_run(folder)
                state = state_of(run, history.read(), told)
            except UserError as error:
                state = State("failed", "; ".join(problem.what for problem in error.problems))
        said = lines if lines is not None else run.overrides if run else ()
        return Job(name, folder, dict(map(_key_and_value, said)), run, history, state)

    @property
    def has_ended(self) -> bool:
        """Whether no job is going on and none will begin, as far as one can see.

        A sweep that is killed says nothing: after a while without a sign of life none is expected.
        """
        words = {job.state.word for job in self.jobs}
        seen = max((job.state.seen for job in self.jobs), default=0.0)
        waits = (self.searches or "not begun" in words) and time.time() - seen < PATIENCE
        return "running" not in words and not waits

    def best(self) -> tuple[str, float] | None:
        """Name and value of a search's best job so far; ``None`` without a search or a value."""
        ways = [line.partition("=")[2] for line in self.command if line.startswith(_DIRECTION)]
        if not ways or not self.values:
            return None
        choose = min if ways[-1] == "minimize" else max
        name = choose(self.values, key=lambda name: self.values[name])
        return name, self.values[name]

    def varied(self) -> list[str]:
        """Keys in which the jobs differ; the seed last."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.said)
        found = [key for key in keys if len({job.said.get(key) for job in self.jobs}) > 1]
        return sorted(found, key=lambda key: key == "seed")


def _is_job(path: Path) -> bool:
    return path.is_dir() and (path.name.isdecimal() or (path / "config.yaml").is_file())


def _in_order(name: str) -> tuple[object, ...]:
    """Numbers by their value, within names too."""
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name))


def _key_and_value(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.lstrip("+~"), value


@dataclass(frozen=True)
class _Record:
    """What a sweep's own record says: its command; of each job, by its folder's name, lines and value."""

    command: Sequence[str] = ()
    jobs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    searches: bool = False


def _record(file: Path) -> _Record:
    """An empty one where there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        jobs = {str(job["folder"]): list(map(str, job["overrides"])) for job in found["jobs"]}
        values = {str(job["folder"]): job.get("value") for job in found["jobs"]}
        return _Record(
            list(map(str, found["overrides"])),
            jobs,
            {name: float(value) for name, value in values.items() if value is not None},
            bool(found.get("searches")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return _Record()


def _planned(file: Path) -> tuple[Sequence[str], dict[str, Sequence[str]]]:
    """Override lines of the sweep, and those of each job that they come to by its number.

    No jobs where another sweeper than Hydra's own decides on them one after the other.
    """
    try:
        text = yaml.load(
            file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
        lines = [str(line) for line in text["hydra"]["overrides"]["task"]]
        sweeper = str(text["hydra"]["sweeper"]["_target_"])
        # What a config of the group sweep runs through; the command line wins.
        params = text["hydra"]["sweeper"].get("params") or {}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return (), {}
    if not sweeper.endswith("BasicSweeper"):
        return lines, {}
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [f"{key}={value}" for key, value in params.items()]
    parsed = OverridesParser.create().parse_overrides([*given, *lines])
    jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    return lines, {str(number): list(job) for number, job in enumerate(jobs)}
