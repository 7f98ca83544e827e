"""How far a run is, as the files of its folder tell: ok, running, failed and why, …"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gfn_runner.report.history import history_of
from gfn_runner.report.saved_config import steps_wanted
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import StateName, reason

_BADGES = {"ok": "good", "running": "busy", "failed": "bad", "cancelled": "bad", "timed out": "bad",
           "waiting": "none", "submitted": "none"}  # fmt: skip
# A run that writes nothing for longer than this, and than twenty of its steps, is silent.
PATIENCE = 900.0
_WRITTEN = ("metrics.jsonl", "run.log", "samples_newest.jsonl", "metrics.json")
_LOG_BYTES = 20_000
_LOG_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


@dataclass(frozen=True)
class State:
    """The state of a run, or of a sweep's job that has not become one yet.

    Attributes:
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

    def __str__(self) -> str:
        reached = f" at optimizer step {self.step or 0} of {self.steps}" if self.steps else ""
        return f"{self.name}{reached}{': ' if self.why else ''}{self.why}"

    @property
    def badge(self) -> str:
        """The class of its badge in ``page.css``."""
        return _BADGES.get(self.name, "odd")

    @property
    def has_ended(self) -> bool:
        """Whether the folder is not expected to change any more."""
        return self.name not in ("running", "waiting", "submitted")

    @property
    def seconds(self) -> float | None:
        """Since the newest part began; ``None`` if that is unknown."""
        if not self.began:
            return None
        return max(0.0, (time.time() if self.name == "running" else self.seen) - self.began)


FINISHED = State("ok")


def state_of(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None,
    known: StateName | None = None,
) -> State:
    """The state of a run's folder.

    Args:
        metrics: of ``metrics.json``; ``None`` without one.
        known: from the run's own process, which counts unless the files say "failed".
    """
    began = newest_of(folder.glob("environment*.json"))
    seen = max(began, newest_of(folder / name for name in _WRITTEN))
    steps = steps_wanted(config)
    if known is None and metrics is not None:
        done = steps_ended(metrics)
        if done is None or steps is None or done >= steps:
            made = int(metrics.get("run/steps", steps or 0))
            return State("ok", "", made, steps, began, seen)
    history = history_of(folder)
    step, pace = history.last_step, history.seconds_per_step(since=began)
    name, why = known or "running", failure(folder)
    silent = time.time() - seen
    if why:
        name = "failed"
    elif known is None and silent >= max(PATIENCE, 20 * (pace or 0.0)):
        name = "silent"
        why = f"nothing written for {duration(silent)}: interrupted, or at a long evaluation"
    left = None
    if name == "running" and pace is not None and steps is not None and step is not None:
        left = pace * max(0, steps - step)
    return State(name, why, step, steps, began, seen, left)


def state_without_config(folder: Path) -> State:
    """Of a job's folder in which no run has written its config: waiting, or failed before that."""
    why, seen = failure(folder), newest_of([folder / "run.log"])
    return State("failed" if why else "waiting", why, seen=seen)


def steps_ended(metrics: Mapping[str, float | None]) -> float | None:
    """Optimizer steps that a run has done with: those it was to make where a callback has stopped it early."""
    return metrics.get("run/stopped_early_of", metrics.get("run/steps"))


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


def last_lines(path: Path) -> list[str]:
    """The last lines of a text file, without blank ones; none if there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line.strip()]
