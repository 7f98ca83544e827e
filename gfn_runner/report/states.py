"""How far a run is: ok, running, failed and why, silent; from the files of its folder, draws nothing."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gfn_runner.report.history import History
from gfn_runner.report.pages import Badge
from gfn_runner.report.runs import Run, last_lines, steps_wanted

Word = Literal["ok", "running", "interrupted", "failed", "silent", "not begun"]

_FAILED = "the run has failed: "
_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_KINDS = {"ok": "good", "running": "busy", "failed": "bad", "not begun": "none"}
# Longer without a word than this, and than twenty times what a step takes, is silence.
PATIENCE = 900.0


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        word: ``silent`` is a run that has neither ended nor given a sign of life for long.
        why: it stands there, where that is not plain.
        step: last optimizer step; ``None`` before the first, and of a run that trains nothing.
        steps: optimizer steps wanted; ``None`` of a run that trains nothing.
        begun: seconds since 1970 at which its newest part began; 0 if that is unknown.
        seen: seconds since 1970 of its last sign of life; 0 without one.
        left: seconds until its training ends; ``None`` where that cannot be told.
        pace: seconds an optimizer step, likewise.
    """

    word: Word
    why: str = ""
    step: int | None = None
    steps: int | None = None
    begun: float = 0.0
    seen: float = 0.0
    left: float | None = None
    pace: float | None = None

    @property
    def badge(self) -> Badge:
        return Badge(self.word, _KINDS.get(self.word, "odd"))

    @property
    def has_ended(self) -> bool:
        """Whether the folder will not change by itself any more, as far as one can see."""
        return self.word not in ("running", "not begun")


def state_of(run: Run, history: History, told: Word | None = None) -> State:
    """The state of a run's folder.

    Args:
        run: as it lies in its folder.
        history: of the same folder, read.
        told: what the run's own process knows, which beats what files look like.
    """
    began = _newest(run.folder.glob("environment*.json"))
    seen = max(began, _newest(run.folder / name for name in _SIGNS))
    pace = history.seconds_per_step(since=began)
    steps, step = steps_wanted(run.config), history.last_step
    word, why = _word(run, history, began, seen, pace)
    if told is not None and word != "failed":
        word, why = told, ""
    left = None
    if word == "running" and pace is not None and steps is not None and step is not None:
        left = pace * max(0, steps - step)
    return State(word, why, step, steps, began, seen, left, pace)


_SIGNS = ("metrics.jsonl", "run.log", "samples_newest.jsonl", "metrics.json")


def _word(
    run: Run, history: History, began: float, seen: float, pace: float | None
) -> tuple[Word, str]:
    if run.status == "finished":
        return "ok", ""
    reason = failure(last_lines(run.folder / "run.log"))
    # A run that goes on after a failure has left younger files.
    failed_at = _newest([run.folder / "run.log"])
    if reason and failed_at >= max(began, _newest([history.path])) - 5:
        return "failed", reason
    silent = time.time() - seen
    if silent < max(PATIENCE, 20 * (pace or 0.0)):
        return "running", ""
    return "silent", f"no sign of life for {duration(silent)}: interrupted, or at a long evaluation"


def failure(log: Sequence[str]) -> str:
    """The reason in one line if a log ends with an error; else nothing."""
    places = [number for number, line in enumerate(log) if _RECORD.match(line)]
    if not places or not log[places[-1]].startswith(("ERROR", "CRITICAL")):
        return ""
    first, *rest = log[places[-1] :]
    reason = first.partition(_FAILED)[2] or first.partition(": ")[2] or first
    # Of a traceback it is the end that says something.
    traceback = reason.startswith("Traceback")
    return _last_said(rest) if traceback and rest else reason.strip()


def _last_said(lines: Sequence[str]) -> str:
    """The line of a traceback that names the exception; its message may have several lines."""
    inner = [number for number, line in enumerate(lines) if line.startswith("  ")]
    told = lines[inner[-1] + 1 :] if inner else lines
    return (told or lines)[0].strip()


def state_without_config(folder: Path) -> State:
    """Of a job's folder in which no run has written its config: not begun, or failed before that."""
    reason = failure(last_lines(folder / "run.log"))
    seen = _newest([folder / "run.log"])
    return State("failed", reason, seen=seen) if reason else State("not begun", seen=seen)


def duration(seconds: float) -> str:
    """A length of time in one or two units."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def _newest(paths: Iterable[Path]) -> float:
    times = [0.0]
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)
