"""Loggers: metrics as lines of JSON, always; and to Weights & Biases."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from gfn_runner.loggers.wandb_run import WandbRun
from gfn_runner.runtime.json_lines import LineAppender


class JsonLinesLogger(Logger):
    """Appends one JSON object a call to ``metrics.jsonl``.

    Each line has ``step`` (optimizer steps), ``time`` (seconds since 1970) and the metrics. Values
    that are not finite become ``null``: JSON has no word for them.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.lines = LineAppender(path)

    @property
    def name(self) -> str:
        return "json-lines"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Settings are in ``config.yaml`` already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: jsonable(value) for name, value in metrics.items()}
        self.lines.append({"step": step, "time": round(time.time(), 3), **values})

    def save(self) -> None:
        """Before a checkpoint: the lines that led to it are on the disk first."""
        self.lines.sync()


def jsonable(value: float) -> float | None:
    """The value, or ``None`` if it is NaN or infinite."""
    return float(value) if math.isfinite(value) else None


class WandbScalars(Logger):
    """Hands scalars to a W&B run, with optimizer steps as their x-axis."""

    def __init__(self, run: WandbRun):
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return str(self.run.run.id)

    @property
    def experiment(self) -> Any:
        """W&B's own run, as Lightning's loggers have it."""
        return self.run.run

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run has its config already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B would write the word "NaN", which no chart draws.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.run.log("scalars", finite, step)
