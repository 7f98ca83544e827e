"""State of a run, derived from the files in its folder: ok, running, failed and why, …"""

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
from gfn_runner.runtime.run_lock import was_released
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import StateName, reason

_BADGES = {"ok": "good", "running": "busy", "failed": "bad", "cancelled": "bad", "timed out": "bad",
           "waiting": "none", "submitted": "none"}  # fmt: skip
# A run is silent if it writes nothing for longer than this (seconds) and than twenty of its steps.
PATIENCE = 900.0
_WRITTEN = ("metrics.jsonl", "run.log", "samples_newest.jsonl", "metrics.json")
_LOG_BYTES = 20_000
_LOG_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


@dataclass(frozen=True)
class State:
    """State of a run, or of a sweep job that has not started its run yet.

    Attributes:
        step: last optimizer step; ``None`` before the first, and for runs that do not train.
        steps: optimizer steps of the whole run; ``None`` for runs that do not train.
        began: time of the run's latest start (first or resumed), in seconds since 1970; 0 if unknown.
        seen: time of the last write, in seconds since 1970; 0 if nothing was written.
        left: seconds until training ends; ``None`` if unknown.
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
        """CSS class of the state's badge in ``page.css``."""
        return _BADGES.get(self.name, "odd")

    @property
    def has_ended(self) -> bool:
        """Whether no further changes to the folder are expected."""
        return self.name not in ("running", "waiting", "submitted")

    @property
    def seconds(self) -> float | None:
        """Seconds since the latest start; ``None`` if unknown."""
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
    """Determine the state of a run from its folder.

    Args:
        metrics: content of ``metrics.json``; ``None`` if it does not exist.
        known: state reported by the run's own process; takes precedence unless the files say "failed".
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
    elif known is None and was_released(folder):
        name = "interrupted"
    elif known is None and silent >= max(PATIENCE, 20 * (pace or 0.0)):
        name = "silent"
        why = f"nothing written for {duration(silent)}: interrupted, or in a long evaluation"
    left = None
    if name == "running" and pace is not None and steps is not None and step is not None:
        left = pace * max(0, steps - step)
    return State(name, why, step, steps, began, seen, left)


def state_without_config(folder: Path) -> State:
    """Return the state of a job whose run has not written its config: waiting, or failed before that."""
    why, seen = failure(folder), newest_of([folder / "run.log"])
    return State("failed" if why else "waiting", why, seen=seen)


def steps_ended(metrics: Mapping[str, float | None]) -> float | None:
    """Return the completed optimizer steps; the planned number if a callback stopped the run early."""
    return metrics.get("run/stopped_early_of", metrics.get("run/steps"))


def failure(folder: Path) -> str:
    """Return why the run failed after its latest start; empty if it did not, or has since continued."""
    log = last_lines(folder / "run.log")
    records = [line for line in log if _LOG_RECORD.match(line)]
    if not records or not records[-1].startswith(("ERROR", "CRITICAL")):
        return ""
    # A run that continued after a failure has newer files.
    newest = newest_of(folder.glob("environment*.json"), [folder / "metrics.jsonl"])
    if newest_of([folder / "run.log"]) < newest - 5:
        return ""
    return reason(folder) or records[-1].partition(": ")[2] or records[-1]


def newest_of(*paths: Iterable[Path]) -> float:
    """Return the newest modification time in seconds since 1970; 0 if none of the files exists."""
    times = [0.0]
    for path in itertools.chain(*paths):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def last_lines(path: Path) -> list[str]:
    """Return the last non-blank lines of a text file; empty if it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.split("\n") if line.strip()]
