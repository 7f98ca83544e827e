"""Logger that writes metrics as JSON lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gfn_runner.runtime.clock import steady_time
from gfn_runner.runtime.json_lines import LineAppender


class JsonLinesLogger(Logger):
    """Appends one JSON object per call to ``metrics.jsonl`` in the run's folder.

    Each line has ``step`` (optimizer steps), ``time`` (seconds since 1970, see
    :func:`~gfn_runner.runtime.clock.steady_time`) and the metrics. Non-finite values
    become ``null``, since JSON cannot represent them.
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
        """Lines that could not be written to disk yet."""
        return self.lines.waiting

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings are in ``config.yaml``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: jsonable(value) for name, value in metrics.items()}
        self.lines.append({"step": step, "time": round(steady_time(), 3), **values})

    def save(self) -> None:
        """Sync all lines to disk; called before a checkpoint is written."""
        self.lines.sync()


def jsonable(value: float) -> float | None:
    """Return the value, or ``None`` if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None
