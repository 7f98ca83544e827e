"""The state of a run's folder: ok, running, failed and why, …; and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gfn_runner.report.history import History
from gfn_runner.report.runs import Run, failure, newest_of, steps_wanted
from gfn_runner.runtime.status import duration

StateName = Literal["ok", "running", "interrupted", "failed", "silent", "not begun"]

_BADGES = {"ok": "good", "running": "busy", "failed": "bad", "not begun": "none"}
# A run that writes nothing for longer than this, and than twenty of its steps, is silent.
PATIENCE = 900.0
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
