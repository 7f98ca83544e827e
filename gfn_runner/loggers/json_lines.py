"""Metrics as lines of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gfn_runner.runtime.clock import steady_time
from gfn_runner.runtime.json_lines import LineAppender


class JsonLinesLogger(Logger):
    """Appends one JSON object a call to ``metrics.jsonl`` in the run's folder.

    Each line has ``step`` (optimizer steps), ``time`` (seconds since 1970, see
    :func:`~gfn_runner.runtime.clock.steady_time`) and the metrics. Values
    that are not finite become ``null``: JSON has no word for them.
    """

    runtime_arguments = ("save_dir",)

    def __init__(self, *, save_dir: str | Path = ".") -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self.lines = LineAppender(self._folder / "metrics.jsonl")

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    def name(self) -> str:
        return "json-lines"

    @property
    def version(self) -> str:
        return ""

    @property
    def waiting(self) -> list[str]:
        """Lines that the disk has not taken yet."""
        return self.lines.waiting

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Settings are in ``config.yaml`` already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: jsonable(value) for name, value in metrics.items()}
        self.lines.append({"step": step, "time": round(steady_time(), 3), **values})

    def save(self) -> None:
        """Before a checkpoint: the lines that led to it are on the disk first."""
        self.lines.sync()


def jsonable(value: float) -> float | None:
    """The value, or ``None`` if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
