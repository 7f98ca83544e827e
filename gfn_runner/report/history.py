"""Scalars of a run by name, read incrementally from its ``metrics.jsonl``."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from gfn_runner.runtime.json_lines import records_of_steps

# Strings sampled from the policy itself, from a tempered policy, and from a store are kept apart. Stores are
# the replay buffer, an earlier rollout (PPO, GRPO) and given strings (SFT).
SOURCES = ("on-policy", "tempered", "stored")
MIXED = "mixed"
_LAST_STEPS = 200  # number of steps over which the speed of a run is measured


class History:
    """All logged scalars of a run; reading again parses only what was appended since.

    Unlike :func:`gfn_runner.runtime.json_lines.read_metrics`, it continues where the last read ended, since a
    page is written at every evaluation.

    Attributes:
        series: for each name, a mapping from optimizer step (ascending) to value; finite values only.
        source: mapping from optimizer step to the origin of its strings: one of ``SOURCES``, or ``mixed`` if
            its batches differ.
        times: mapping from training step to the time it was logged, in seconds since 1970; no evaluations.
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
        """Read the lines appended since the last call; an incomplete last line is left for the next one."""
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._clear()  # another file: a resumed run truncates its metrics
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
        """Return steps and values of a scalar, optionally of one source only; empty if never logged."""
        series = self.series.get(name, {})
        if source is not None:
            series = {step: v for step, v in series.items() if self.source.get(step) == source}
        return list(series), list(series.values())

    def sets(self, metric: str) -> list[str]:
        """Return the evaluation sets of a metric such as ``eval/log_reward``, in order of appearance."""
        return [
            name.removeprefix(f"{metric}/") for name in self.series if name.startswith(f"{metric}/")
        ]

    @property
    def last_step(self) -> int | None:
        """Last training step; ``None`` before the first."""
        return next(reversed(self.times), None)

    def seconds_per_step(self, since: float) -> float | None:
        """Return the mean duration of recent steps, including evaluations; ``None`` before the second step.

        Args:
            since: seconds since 1970; steps logged earlier belong to a previous start of the run.
        """
        last = [(step, t) for step, t in list(self.times.items())[-_LAST_STEPS:] if t >= since]
        if len(last) < 2:
            return None
        return max(0.0, last[-1][1] - last[0][1]) / (last[-1][0] - last[0][0])


@lru_cache(maxsize=1024)
def _history(path: Path) -> History:
    # Cached, so that rewriting a page of many runs reads only what is new in each.
    return History(path)


def history_of(folder: Path) -> History:
    """Return everything that a run has logged so far."""
    return _history((folder / "metrics.jsonl").resolve()).read()


def _put(series: dict[int, float], step: int, value: float) -> None:
    # A resumed run repeats steps: its new values replace the old ones and everything logged after them.
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
