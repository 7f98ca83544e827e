"""Logging of scalars to the loggers and to Lightning's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import lightning as L
import torch

from gfn_runner.errors import Problem, UserError


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Log scalars to every logger and to ``trainer.callback_metrics``.

    The latter is read by ``EarlyStopping``, ``ModelCheckpoint`` and other callbacks with a ``monitor``.
    (Lightning's own ``log`` would pass the values to the loggers in fp32.)
    """
    trainer.callback_metrics.update({k: torch.tensor(value) for k, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step if step is None else step)


def check_monitors(trainer: L.Trainer) -> None:
    """Check that each callback's ``monitor`` names a logged scalar; all are known after an evaluation.

    Raises:
        UserError: with all unknown monitors.
    """
    names = list(trainer.callback_metrics)
    problems = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's own name
        monitor = getattr(callback, "monitor", None)
        if monitor is None or monitor in names or not getattr(callback, "strict", True):
            continue
        near = get_close_matches(monitor, names, n=3, cutoff=0.4) or sorted(names)[:3]
        kind = type(callback).__name__
        problems.append(
            Problem(
                f"monitor of {kind}",
                f"given {monitor!r}, which no step or evaluation has logged",
                f"a name of metrics.jsonl, such as {', '.join(near)}",
            )
        )
    if problems:
        raise UserError(problems)
