"""Scalars of a step, for the loggers and for Lightning's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import lightning as L
import torch

from gfn_runner.errors import Problem, UserError


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Write scalars to every logger and into ``trainer.callback_metrics``.

    The latter is where ``EarlyStopping``, ``ModelCheckpoint`` and others with a ``monitor`` look. (Lightning's
    own ``log`` would write them to the loggers in fp32.)
    """
    trainer.callback_metrics.update({k: torch.tensor(value) for k, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step if step is None else step)


def check_monitors(trainer: L.Trainer) -> None:
    """Refuse a ``monitor`` of Lightning's callbacks that names no scalar; after an evaluation all are known.

    Raises:
        UserError: with each of them.
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
