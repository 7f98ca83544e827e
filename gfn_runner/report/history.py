"""Scalars of a run by name, read from the growing end of its ``metrics.jsonl``."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from gfn_runner.runtime.json_lines import records_of_steps

# Strings of the policy as it is, of a tempered one, and from a store are three populations. Stores are
# the replay buffer, a rollout that was used before (PPO, GRPO), known strings (SFT).
SOURCES = ("on-policy", "tempered", "stored")
MIXED = "mixed"
_LAST_STEPS = 200  # by which the pace of a run is measured


class History:
    """All scalars of a run. Reading again costs only what was written since.

    Unlike :func:`gfn_runner.runtime.json_lines.read_metrics` it reads on from where it was, since a page
    is written at every evaluation.

    Attributes:
        series: by name, optimizer steps (rising) to values; only finite ones.
        source: optimizer step to where its strings came from: one of ``SOURCES``, or ``mixed`` where its
            batches differ.
        times: optimizer steps to the seconds since 1970 at which they were logged, without evaluations.
    """

    def __init__(self, path: Path):
        self.path = path
        self._clear()

    def _clear(self) -> None:
        self.series: dict[str, dict[int, float]] = {}
        self.source: dict[int, str] = {}
        self.times: dict[int, float] = {}
        self._offset = self._file = 0

    def read(self) -> History:
        """Read what was added since the last time; an incomplete last line waits."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._clear()  # another file: a run that goes on cuts its own back
                    self._file = found.st_ino
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return self
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        for record in records_of_steps(complete):
            self._add(record)
        return self

    def _add(self, record: dict[str, Any]) -> None:
        step, time = record.pop("step"), record.pop("time", None)
        if "train/loss" in record:
            self.source[step] = _source(record)
            if isinstance(time, int | float):
                _put(self.times, step, time)
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                _put(self.series.setdefault(name, {}), step, value)

    def get(self, name: str, source: str | None = None) -> tuple[list[int], list[float]]:
        """Steps and values of a scalar, empty if it was never logged; of one source's steps only."""
        series = self.series.get(name, {})
        if source is not None:
            series = {step: v for step, v in series.items() if self.source.get(step) == source}
        return list(series), list(series.values())

    def sets(self, metric: str) -> list[str]:
        """Evaluation sets of a metric such as ``eval/log_reward``, in the order in which they came."""
        return [
            name.removeprefix(f"{metric}/") for name in self.series if name.startswith(f"{metric}/")
        ]

    @property
    def last_step(self) -> int | None:
        """Of training; ``None`` before the first."""
        return next(reversed(self.times), None)

    def seconds_per_step(self, since: float) -> float | None:
        """Mean over the last steps, evaluations between them included; ``None`` before the second step.

        Args:
            since: seconds since 1970; steps logged before are of another part of the run.
        """
        last = [(step, t) for step, t in list(self.times.items())[-_LAST_STEPS:] if t >= since]
        if len(last) < 2:
            return None
        return max(0.0, last[-1][1] - last[0][1]) / (last[-1][0] - last[0][0])


@lru_cache(maxsize=1024)
def _history(path: Path) -> History:
    # A page of many runs that is written again and again reads of each what is new.
    return History(path)


def history_of(folder: Path) -> History:
    """What a run has logged so far."""
    return _history((folder / "metrics.jsonl").resolve()).read()


def _put(series: dict[int, float], step: int, value: float) -> None:
    # A resumed run repeats steps: the new values count, and what came after them is void.
    while series and next(reversed(series)) >= step:
        series.popitem()
    series[step] = value


def _source(record: dict[str, Any]) -> str:
    share = record.get("train/from_replay")
    if share == 1.0:
        return "stored"
    if share == 0.0:
        return "on-policy" if record.get("train/exploration_temperature") == 1.0 else "tempered"
    return MIXED
