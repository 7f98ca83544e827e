"""Loggers: metrics as lines of JSON, always; and Weights & Biases, offline unless it can go online."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from gfn_runner.json_lines import LineAppender
from gfn_runner.randomness import derived_seed
from gfn_runner.settings import LoggerSettings

logger = logging.getLogger(__name__)


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


def wandb_logger(
    options: LoggerSettings, folder: Path, config: dict[str, Any], tags: Sequence[str]
) -> WandbLogger | None:
    """W&B's logger, or ``None`` if it is off or cannot start. It never asks for anything.

    The id of the W&B run is derived from the folder, so that a resumed run continues its own.
    """
    mode = os.environ.get("WANDB_MODE", options.wandb)
    if options.wandb == "off" or mode in ("disabled", "off"):
        return None
    if mode == "online" and not _has_credentials():
        logger.warning(
            "logger.wandb=online, but no W&B account is set up here (no WANDB_API_KEY, nothing in "
            ".netrc): the run is written offline; `wandb sync %s/wandb/offline-*` sends it later",
            folder,
        )
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return _start(options, folder, config, tags, attempt)
        except Exception as error:  # whatever W&B raises, training goes on
            reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
            logger.warning("W&B does not start %s (%s)", attempt, reason)
    return None


def _start(
    options: LoggerSettings, folder: Path, config: dict[str, Any], tags: Sequence[str], mode: str
) -> WandbLogger:
    import wandb

    run = wandb.init(
        name="/".join(folder.parts[-3:]),
        dir=str(folder),
        project=options.project,
        entity=options.entity,
        group=options.group,
        tags=sorted({*options.tags, *tags}),
        id=f"{derived_seed('wandb', folder.resolve()):016x}",
        mode=mode,  # type: ignore[arg-type]  # checked by LoggerSettings, or W&B's own variable
        config=config,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(silent=True, console="off", init_timeout=20),
    )
    return WandbLogger(experiment=run, save_dir=str(folder), log_model=False)


def _has_credentials() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    return bool(wandb.api.api_key)
