"""Discovery and reading of runs: config, metrics, and whether and why a run has not finished."""

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
    """A run's folder, or that of a sweep job which has not started.

    Attributes:
        config: resolved config; empty for a job that has not started.
        metrics: finite values in ``metrics.json``; empty if the run has not finished.
        overrides: command-line overrides.
        environments: environment at each start of the run (first or resumed), in order; empty if unreadable.
        ended: time at which ``metrics.json`` was written, in seconds since 1970; 0 without the file.
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
        """All scalars that the run has logged so far."""
        return history_of(self.folder)

    @property
    def log(self) -> list[str]:
        """Last lines of the run's log."""
        return last_lines(self.folder / "run.log")

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the config; empty if missing."""
        return self.config.get(name) or {}

    @property
    def task(self) -> str:
        """Import path of the task's class."""
        return str(self.section("task").get("_target_", ""))

    @property
    def task_name(self) -> str:
        """Name as in ``task=…``; the class name if the class can no longer be imported."""
        return str(getattr(imported(self.task), "name", self.task.rpartition(".")[2]))

    @property
    def headline(self) -> tuple[str, ...]:
        """Headline metrics of the task; empty if its class can no longer be imported."""
        return tuple(getattr(imported(self.task), "headline", ()))

    @property
    def seed(self) -> int:
        return int(self.config.get("seed") or 0)

    @property
    def baseline(self) -> str | None:
        """Class name of the baseline; ``None`` for GFlowNet training."""
        chosen = self.config.get("baseline")
        return str(chosen["_target_"]).rpartition(".")[2] if chosen else None

    @property
    def commits(self) -> tuple[str, ...]:
        """Commits of the code, in order of the run's starts; ``-changed`` marks uncommitted changes."""
        gits = [e["git"] for e in self.environments if isinstance(e.get("git"), dict)]
        found = (
            str(git["commit"])[:10] + "-changed" * bool(git.get("changed"))
            for git in gits
            if "commit" in git
        )
        return tuple(dict.fromkeys(found))

    @property
    def on_cpu(self) -> bool:
        """Whether the run had no GPU at any of its starts."""
        return {e.get("device") for e in self.environments} == {"cpu"}

    @property
    def temperature(self) -> float:
        """Reward temperature T of the final evaluation; 1 if none was recorded."""
        return self.metrics.get("run/reward_temperature", 1.0)

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Prefixes of metrics measured on samples: ``final`` and methods without training."""
        others = {"run", "train", "seconds", "eval", "m_step"}
        found = dict.fromkeys(name.partition("/")[0] for name in self.metrics if "/" in name)
        return tuple(name for name in found if name not in others)

    def samples(self, row: str) -> list[dict[str, Any]]:
        """Return the row's samples, one record per condition; empty if none were written.

        Raises:
            UserError: if the file cannot be read.
        """
        name = "samples.jsonl" if row == "final" else f"samples_{row}.jsonl"
        path = (self.folder / name).resolve()
        return _samples(path, path.stat().st_mtime_ns) if path.is_file() else []


@lru_cache(maxsize=64)
def _samples(path: Path, written: int) -> list[dict[str, Any]]:
    # Cached, since several figures and a table use the same samples.
    try:
        return read_samples(path)
    except ValueError as error:
        raise UserError.one(
            str(path), f"cannot be read ({error})", "one JSON object per line, as a run writes them"
        ) from None


def find_runs(given: Sequence[str]) -> list[Path]:
    """Return the run folders below the given folders, without duplicates, sorted by name.

    A folder is a run if its ``config.yaml`` has a task; folders inside a run are not searched.

    Raises:
        UserError: lists every argument that leads to no run.
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
                    "no runs found",
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
    """Read all runs, finished or not.

    Raises:
        UserError: lists every file that cannot be read; also raised if no run has finished.
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
    """Read a run from its folder.

    Args:
        known: state reported by the run's own process; see :func:`state_of`.

    Raises:
        UserError: if a file is not in the format that runs write.
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
    """Return the metrics that are finite; ``None`` if the file does not exist."""
    if not path.is_file():
        return None
    try:
        # JSON has null for numbers that are not finite.
        known = {n: float(v) for n, v in read_object(path).items() if v is not None}
    except (ValueError, TypeError) as error:
        raise UserError.one(
            str(path),
            f"cannot be read ({error})",
            "one JSON object of names and numbers, as a run writes it",
            "leave the run's folder out, or finish the run again with resume=",
        ) from None
    return {n: v for n, v in known.items() if math.isfinite(v)}


def environment_files(folder: Path) -> list[Path]:
    """Return ``environment*.json`` of each start of a run (first or resumed), in order."""
    return sorted(folder.glob("environment*.json"), key=lambda path: (len(path.name), path.name))
