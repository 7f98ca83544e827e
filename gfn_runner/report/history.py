"""Scalars of a run by name, read from the growing end of its ``metrics.jsonl``; draws nothing."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Strings that the policy drew as it is, hot ones and old ones are three populations, not one curve.
BEHAVIOURS = ("on-policy", "tempered", "replay")
MIXED = "mixed"


@dataclass
class Series:
    """One scalar: the optimizer steps at which it was logged, rising, and its values."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, step: int, value: float) -> None:
        # A resumed run repeats steps: what it says now holds, and what came after them is void.
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)


class History:
    """All scalars of a run. Reading again costs only what was written since.

    Attributes:
        path: of ``metrics.jsonl``; it may not exist yet.
        series: by name, only those with a finite value.
        behaviour: optimizer step to where its strings came from: one of ``BEHAVIOURS``, or ``mixed``
            where its batches differ.
        times: seconds since 1970 at which each optimizer step was logged, evaluations left out.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.series: dict[str, Series] = {}
        self.behaviour: dict[int, str] = {}
        self.times = Series()
        self._read = 0

    def read(self) -> History:
        """Take in what the file has got since the last time; a last line that is not whole waits."""
        try:
            size = self.path.stat().st_size
            if size < self._read:
                self._forget()  # another file
            with self.path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return self
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for record in _records(whole):
            self._take(record)
        return self

    def _take(self, record: dict[str, Any]) -> None:
        step = record.pop("step", None)
        time = record.pop("time", None)
        if not isinstance(step, int):
            return
        if "train/loss" in record:
            self.behaviour[step] = _behaviour(record)
            if isinstance(time, int | float):
                self.times.add(step, time)
        for name, value in record.items():
            if isinstance(value, int | float):
                self.series.setdefault(name, Series()).add(step, value)

    def get(self, name: str, behaviour: str | None = None) -> tuple[list[int], list[float]]:
        """Steps and values of a scalar, empty if it was never logged; of one behaviour's steps only."""
        series = self.series.get(name, Series())
        pairs = [
            (step, value)
            for step, value in zip(series.steps, series.values, strict=True)
            if behaviour is None or self.behaviour.get(step) == behaviour
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def sets(self, metric: str) -> list[str]:
        """Evaluation sets of a metric such as ``eval/log_reward``, in the order in which they came."""
        return [
            name.removeprefix(f"{metric}/") for name in self.series if name.startswith(f"{metric}/")
        ]

    @property
    def last_step(self) -> int | None:
        """Of training; ``None`` before the first."""
        return self.times.steps[-1] if self.times else None

    def seconds_per_step(self, since: float = 0.0, window: int = 200) -> float | None:
        """Of late, with the evaluations between steps; ``None`` while that cannot be known.

        Args:
            since: seconds since 1970; steps logged before are another part of the run.
            window: steps to look back at most.
        """
        pairs = [
            (step, time)
            for step, time in zip(
                self.times.steps[-window:], self.times.values[-window:], strict=True
            )
            if time >= since
        ]
        if len(pairs) < 2:
            return None
        (first, began), (last, ended) = pairs[0], pairs[-1]
        return max(0.0, ended - began) / (last - first)


def _records(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off by a crash
        if isinstance(record, dict):
            yield record


def _behaviour(record: dict[str, Any]) -> str:
    share = record.get("train/from_replay")
    if share == 1.0:
        return "replay"
    if share == 0.0:
        return "on-policy" if record.get("train/exploration_temperature") == 1.0 else "tempered"
    return MIXED
