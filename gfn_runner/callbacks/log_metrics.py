"""Scalars of a step, for the loggers and for Lightning's own callbacks."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch


def log_metrics(trainer: L.Trainer, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Write scalars to every logger and into ``trainer.callback_metrics``.

    The latter is where ``EarlyStopping``, ``ModelCheckpoint`` and others with a ``monitor`` look. (Lightning's
    own ``log`` would write them to the loggers in fp32.)

    Args:
        trainer: of the run.
        metrics: by name.
        step: optimizer step; the trainer's own if none is given.
    """
    trainer.callback_metrics.update({k: torch.tensor(value) for k, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step if step is None else step)
