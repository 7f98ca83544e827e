"""Runs found below folders and read from their files: config, metrics, whether finished or why not."""

from __future__ import annotations

import contextlib
import glob
import importlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.errors import Problem, UserError
from gfn_runner.report.samples import read_samples
from gfn_runner.report.saved_config import read_config
from gfn_runner.runtime.files import read_yaml
from gfn_runner.runtime.json_lines import loads, object_or_empty, read_object
from gfn_runner.runtime.sweep_record import reason

Status = Literal["finished", "unfinished", "failed"]
_LOG_LINES = 5
_LOG_BYTES = 20_000
_LOG_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


@dataclass(frozen=True, eq=False)
class Run:
    """A run's folder.

    Attributes:
        metrics: of ``metrics.json``, without those that were not finite; empty if it has not finished.
        environments: what each of its parts ran on, in their order; empty for one that cannot be read.
        status: ``finished``, ``unfinished`` (or still running) or ``failed``.
        ended: seconds since 1970 at which ``metrics.json`` was written; 0 without one.
        why: the reason of a status other than ``finished``.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    overrides: tuple[str, ...] = ()
    environments: tuple[Mapping[str, Any], ...] = ()
    status: Status = "finished"
    why: str = ""
    log: tuple[str, ...] = ()
    ended: float = 0.0

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the config; empty where there is none."""
        return self.config.get(name) or {}

    @property
    def task(self) -> str:
        """Import path of the task's class."""
        return str(self.config["task"]["_target_"])

    @property
    def task_name(self) -> str:
        """As in ``task=…``; the class's own if it cannot be imported any more."""
        return str(getattr(_imported(self.task), "name", self.task.rpartition(".")[2]))

    @property
    def headline(self) -> tuple[str, ...]:
        """Metrics that the task puts first; none if its class cannot be imported any more."""
        return tuple(getattr(_imported(self.task), "headline", ()))

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
        """Reward temperature T at the end of training.

        Raises:
            UserError: if the config's is no schedule.
        """
        try:
            schedule = Schedule(**callback_arguments(self.config, "reward_tempering"))
        except (TypeError, ValueError) as error:
            where = f"{self.folder / 'config.yaml'}, callbacks.reward_tempering"
            what = f"no schedule of T: {str(error).splitlines()[0]}"
            raise UserError.one(where, what, "start, end, steps and shape") from None
        return schedule(max(0, int(self.metrics.get("run/steps", 0)) - 1))

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
    if not problems and not any(run.status == "finished" for run in runs):
        problems = [_not_finished(run) for run in runs]
    if problems:
        raise UserError(problems)
    return runs


def _not_finished(run: Run) -> Problem:
    log = "".join(f"\n    run.log: {line}" for line in run.log)
    can_resume = any(run.folder.glob("checkpoints/*.ckpt"))
    fix = f"python -m gfn_runner resume={run.folder}" if can_resume else ""
    return Problem(str(run.folder), run.why + log, "a finished run", fix)


def read_run(folder: Path) -> Run:
    """The run of a folder.

    Raises:
        UserError: at files that are not what a run writes.
    """
    config = read_config(folder / "config.yaml")
    metrics = _metrics(folder / "metrics.json")
    overrides: list[Any] = []
    with contextlib.suppress(ValueError):
        overrides = read_yaml(folder / "overrides.yaml", list)
    status, why = _status(folder, config, metrics)
    return Run(
        folder=folder,
        config=config,
        metrics=metrics or {},
        overrides=tuple(map(str, overrides)),
        environments=tuple(map(object_or_empty, environment_files(folder))),
        status=status,
        why=why,
        log=tuple(last_lines(folder / "run.log")[-_LOG_LINES:]),
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


def steps_ended(metrics: Mapping[str, float | None]) -> float | None:
    """Optimizer steps that a run has done with: those it was to make where a callback has stopped it early."""
    return metrics.get("run/stopped_early_of", metrics.get("run/steps"))


def _status(
    folder: Path, config: Mapping[str, Any], metrics: Mapping[str, float] | None
) -> tuple[Status, str]:
    wanted = steps_wanted(config)
    if metrics is not None:
        done = steps_ended(metrics)
        if done is None or wanted is None or done >= wanted:
            return "finished", ""
        why = (
            f"metrics.json is of step {done:.0f}, config.yaml asks for {wanted}: resumed, not ended"
        )
        return "unfinished", why
    step = _last_step(folder / "metrics.jsonl")
    reached = "no optimizer step" if step is None else f"optimizer step {step}"
    reached += f" of {wanted}" if wanted else ""
    if failure(folder):
        return "failed", f"no metrics.json, {reached} reached, and run.log holds an error"
    return "unfinished", f"no metrics.json, {reached} reached: interrupted, or still running"


def failure(folder: Path) -> str:
    """Why the newest part of a run has failed; empty if it has not, or has gone on since."""
    log = last_lines(folder / "run.log")
    records = [line for line in log if _LOG_RECORD.match(line)]
    if not records or not records[-1].startswith(("ERROR", "CRITICAL")):
        return ""
    # A run that goes on after a failure has younger files.
    newest = newest_of(folder.glob("environment*.json"), [folder / "metrics.jsonl"])
    if newest_of([folder / "run.log"]) < newest - 5:
        return ""
    return reason(folder) or records[-1].partition(": ")[2] or records[-1]


def newest_of(*paths: Iterable[Path]) -> float:
    """Seconds since 1970 of the last change of any of the files; 0 if none is there."""
    times = [0.0]
    for path in itertools.chain(*paths):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def steps_wanted(config: Mapping[str, Any]) -> int | None:
    """Optimizer steps of a whole run; ``None`` of one that trains nothing."""
    steps = (config.get("trainer") or {}).get("max_steps")
    if steps is None or not trains(config, unknown=False):
        return None
    return int(steps) * max(1, int((config.get("em") or {}).get("rounds") or 0))


def callback_arguments(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The arguments of a run's callback; none if it was removed."""
    node = (config.get("callbacks") or {}).get(name) or {}
    return {key: value for key, value in node.items() if key != "_target_"}


def trains(config: Mapping[str, Any], unknown: bool = True) -> bool:
    """Whether a run of this config trains; ``unknown`` if its baseline's class cannot be imported."""
    baseline = config.get("baseline")
    if not baseline:
        return True
    kind = _imported(str(baseline.get("_target_", "")))
    return unknown if kind is None else issubclass(kind, Algorithm)


def _imported(target: str) -> Any:
    """A class by its import path; ``None`` if there is none any more."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _last_step(path: Path) -> int | None:
    for line in reversed(last_lines(path)):
        # Cut off by a crash.
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
            return int(loads(line)["step"])
    return None


def last_lines(path: Path) -> list[str]:
    """The last lines of a text file, without blank ones; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line.strip()]


def environment_files(folder: Path) -> list[Path]:
    """``environment*.json`` of each part of a run, in their order."""
    return sorted(folder.glob("environment*.json"), key=lambda path: (len(path.name), path.name))
