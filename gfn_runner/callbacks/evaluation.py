"""Evaluation: collects what validation drew, asks the task for metrics and logs them; no sampling."""

from __future__ import annotations

from typing import Any

import lightning as L

from gfn_runner.measures import measure
from gfn_runner.module import GFlowNetModule
from gfn_runner.tasks.base import ConditionSamples


class EvaluationCallback(L.Callback):
    """Keeps the newest evaluation.

    Attributes:
        samples: what was drawn in it.
        metrics: the task's metrics of it, names without a prefix.
        final: whether it is the one after training.
    """

    def __init__(self) -> None:
        self.samples: list[ConditionSamples] = []
        self.metrics: dict[str, float] = {}
        self.final = False

    def on_validation_epoch_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self.samples = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: GFlowNetModule,
        outputs: list[ConditionSamples],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.samples += outputs

    def on_validation_epoch_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self.metrics = measure(
            module.task,
            self.samples,
            temperature=module.reward_temperature,
            encoder=module.evaluation.encoder,
        )
        # The final evaluation is of more conditions: another series than the ones on the way.
        prefix = "final" if self.final else "eval"
        named = {f"{prefix}/{name}": value for name, value in self.metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
