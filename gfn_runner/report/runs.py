"""Runs found below folders and read from their files: config, metrics, whether finished or why not."""

from __future__ import annotations

import contextlib
import glob
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from gfn_runner.errors import Problem, UserError
from gfn_runner.report.history import History, history_of
from gfn_runner.report.samples import read_samples
from gfn_runner.report.saved_config import imported, read_config
from gfn_runner.report.states import FINISHED, State, last_lines, newest_of, state_of
from gfn_runner.runtime.files import read_yaml
from gfn_runner.runtime.json_lines import object_or_empty, read_object
from gfn_runner.runtime.sweep_record import StateName

_LOG_LINES = 5


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder; or that of a sweep's job which has not begun.

    Attributes:
        config: the resolved one; empty of a job that has not begun.
        metrics: of ``metrics.json``, without those that were not finite; empty if it has not finished.
        overrides: command-line lines.
        environments: what each of its parts ran on, in their order; empty for one that cannot be read.
        ended: seconds since 1970 at which ``metrics.json`` was written; 0 without one.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    state: State = FINISHED
    overrides: tuple[str, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()
    ended: float = 0.0

    @property
    def is_finished(self) -> bool:
        return self.state.name == "ok"

    @property
    def history(self) -> History:
        """What it has logged so far."""
        return history_of(self.folder)

    @property
    def log(self) -> list[str]:
        """The last lines of its log."""
        return last_lines(self.folder / "run.log")

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the config; empty where there is none."""
        return self.config.get(name) or {}

    @property
    def task(self) -> str:
        """Import path of the task's class."""
        return str(self.section("task").get("_target_", ""))

    @property
    def task_name(self) -> str:
        """As in ``task=…``; the class's own if it cannot be imported any more."""
        return str(getattr(imported(self.task), "name", self.task.rpartition(".")[2]))

    @property
    def headline(self) -> tuple[str, ...]:
        """Metrics that the task puts first; none if its class cannot be imported any more."""
        return tuple(getattr(imported(self.task), "headline", ()))

    @property
    def seed(self) -> int:
        return int(self.config.get("seed") or 0)

    @property
    def baseline(self) -> str | None:
        """Class of the baseline that the run is of; ``None`` for GFlowNet training."""
        chosen = self.config.get("baseline")
        return str(chosen["_target_"]).rpartition(".")[2] if chosen else None

    @property
    def commits(self) -> tuple[str, ...]:
        """Of the code, in the order of the run's parts; with ``-changed`` where files were changed."""
        gits = [e["git"] for e in self.environments if isinstance(e.get("git"), dict)]
        found = (
            str(git["commit"])[:10] + "-changed" * bool(git.get("changed"))
            for git in gits
            if "commit" in git
        )
        return tuple(dict.fromkeys(found))

    @property
    def on_cpu(self) -> bool:
        """Whether all its parts ran without a GPU."""
        return {e.get("device") for e in self.environments} == {"cpu"}

    @property
    def temperature(self) -> float:
        """Reward temperature T of the final evaluation; 1 where a run has recorded none."""
        return self.metrics.get("run/reward_temperature", 1.0)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Prefixes of metrics that were measured on samples: ``final`` and methods without training."""
        others = {"run", "train", "seconds", "eval", "m_step"}
        found = dict.fromkeys(name.partition("/")[0] for name in self.metrics if "/" in name)
        return tuple(name for name in found if name not in others)

    def samples(self, row: str) -> list[dict[str, Any]]:
        """The row's samples, a record a condition; empty if none were written.

        Raises:
            UserError: if the file cannot be read.
        """
        name = "samples.jsonl" if row == "final" else f"samples_{row}.jsonl"
        path = (self.folder / name).resolve()
        return _samples(path, path.stat().st_mtime_ns) if path.is_file() else []


@lru_cache(maxsize=64)
def _samples(path: Path, written: int) -> list[dict[str, Any]]:
    # Several figures and a table look at the same samples.
    try:
        return read_samples(path)
    except ValueError as error:
        raise UserError.one(
            str(path), f"cannot be read ({error})", "one JSON object a line, as a run writes them"
        ) from None


def find_runs(given: Sequence[str]) -> list[Path]:
    """Folders of runs below the given folders, each once, in the order of their names.

    A folder with a ``config.yaml`` that names a task is a run; what lies inside of one is its own.

    Raises:
        UserError: with every argument that leads to no run.
    """
    found: dict[Path, Path] = {}
    problems = []
    for text in given:
        paths = [Path(text)] if Path(text).exists() else [Path(p) for p in sorted(glob.glob(text))]
        if not paths:
            problems.append(Problem(text, "there is no such folder"))
        folders = [folder for path in paths for folder in _runs_below(path)]
        if paths and not folders:
            problems.append(
                Problem(
                    text,
                    "no run lies here",
                    "a folder with a run's config.yaml and metrics.json, or one above such folders",
                    "outputs for all runs",
                )
            )
        found |= {folder.resolve(): folder for folder in folders}
    if problems:
        raise UserError(problems)
    return list(dict.fromkeys(sorted(found.values())))


def _runs_below(path: Path) -> Iterator[Path]:
    if _is_run(path):
        yield path
        return
    for place, folders, _ in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        runs = [name for name in folders if _is_run(Path(place, name))]
        yield from (Path(place, name) for name in runs)
        folders[:] = [name for name in folders if name not in runs]


def _is_run(folder: Path) -> bool:
    file = folder / "config.yaml"
    return file.is_file() and any(
        line.startswith("task:") for line in file.read_text("utf-8", "replace").splitlines()
    )


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """All runs, finished or not.

    Raises:
        UserError: with every file that cannot be read, and if no run is finished.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            problems += error.problems
    if not problems and not any(run.is_finished for run in runs):
        problems = [_not_finished(run) for run in runs]
    if problems:
        raise UserError(problems)
    return runs


def _not_finished(run: Run) -> Problem:
    log = "".join(f"\n    run.log: {line}" for line in run.log[-_LOG_LINES:])
    can_resume = any(run.folder.glob("checkpoints/*.ckpt"))
    fix = f"python -m gfn_runner resume={run.folder}" if can_resume else ""
    return Problem(str(run.folder), f"{run.state}{log}", "a finished run", fix)


def read_run(folder: Path, known: StateName | None = None) -> Run:
    """The run of a folder.

    Args:
        known: its state, from the run's own process; see :func:`state_of`.

    Raises:
        UserError: at files that are not what a run writes.
    """
    config = read_config(folder / "config.yaml")
    metrics = _metrics(folder / "metrics.json")
    overrides: list[Any] = []
    with contextlib.suppress(ValueError):
        overrides = read_yaml(folder / "overrides.yaml", list)
    return Run(
        folder=folder,
        config=config,
        metrics=metrics or {},
        state=state_of(folder, config, metrics, known),
        overrides=tuple(map(str, overrides)),
        environments=tuple(map(object_or_empty, environment_files(folder))),
        ended=newest_of([folder / "metrics.json"]),
    )


def _metrics(path: Path) -> dict[str, float] | None:
    """Metrics that are finite numbers; ``None`` without the file."""
    if not path.is_file():
        return None
    try:
        # JSON says null where a number was not finite.
        known = {n: float(v) for n, v in read_object(path).items() if v is not None}
    except (ValueError, TypeError) as error:
        raise UserError.one(
            str(path),
            f"cannot be read ({error})",
            "one JSON object of names and numbers, as a run writes it",
            "leave the run's folder out, or let it finish again by resume=",
        ) from None
    return {n: v for n, v in known.items() if math.isfinite(v)}


def environment_files(folder: Path) -> list[Path]:
    """``environment*.json`` of each part of a run, in their order."""
    return sorted(folder.glob("environment*.json"), key=lambda path: (len(path.name), path.name))
