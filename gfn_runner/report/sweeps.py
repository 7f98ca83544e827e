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

_SWEEP_FILE = "multirun.yaml"  # Hydra's, written before the first job
_RECORD = "sweep.json"  # ours: see gfn_runner/sweeps/record.py


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
    """Whether Hydra has made the folder for a multirun."""
    return (folder / _SWEEP_FILE).is_file()


@dataclass
class Sweep:
    """A folder of runs. Reading it again costs only what was written since.

    Attributes:
        folder: of the sweep.
        jobs: in the order of their numbers, as of the last time that it was read.
        command: override lines of the sweep; empty where they are not known.
    """

    folder: Path
    jobs: list[Job] = field(default_factory=list)
    command: Sequence[str] = ()
    _histories: dict[str, History] = field(default_factory=dict)

    def read(self, told: Mapping[str, Word] | None = None) -> Sweep:
        """Look through the folder.

        Args:
            told: states that a job's own process knows, by the job's name.
        """
        self.command, planned = _planned(self.folder / _SWEEP_FILE)
        # The sweep's own record knows the folders, whatever they are called.
        planned = _recorded(self.folder / _RECORD) or planned
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

        Hydra's own launcher begins no other job once one has failed, and does not say so.
        """
        words = {job.state.word for job in self.jobs}
        seen = max((job.state.seen for job in self.jobs), default=0.0)
        waits = "not begun" in words and time.time() - seen < PATIENCE
        return "running" not in words and not waits

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


def _recorded(file: Path) -> dict[str, Sequence[str]]:
    """Override lines of each job by its folder's name; none where there is no record."""
    try:
        jobs = json.loads(file.read_text(encoding="utf-8"))["jobs"]
        return {str(job["folder"]): list(map(str, job["overrides"])) for job in jobs}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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
