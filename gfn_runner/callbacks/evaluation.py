"""Evaluation: collects what validation drew, asks the task for metrics and logs them; no sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Batch
from gfn_runner.distributed.ranks import from_first
from gfn_runner.evaluation.measure import measure
from gfn_runner.module import GFlowNetModule
from gfn_runner.runtime.json_lines import read_metrics
from gfn_runner.runtime.status import Count


class EvaluationCallback(L.Callback):
    """Keeps the newest evaluation, and makes up for one that an interruption has cost.

    A checkpoint of a step comes before the evaluation of that step: a signal need not wait for it. A run
    that goes on from there evaluates first if ``metrics.jsonl`` has no evaluation of the step.

    Attributes:
        every: optimizer steps between evaluations; 0 for none.
        tempering: reward temperature by optimizer step.
        lines: ``metrics.jsonl`` of the run.
        samples: what was drawn in it.
        metrics: the task's metrics of it, names without a prefix.
        final: whether it is the one after training.
    """

    def __init__(self, every: int, tempering: Schedule, lines: Path) -> None:
        self.every, self.tempering, self.lines = every, tempering, lines
        self.samples: list[ConditionSamples] = []
        self.metrics: dict[str, float] = {}
        self.final = False
        self._count: Count | None = None

    def lacks(self, step: int) -> bool:
        """Whether the evaluation of a step that has been made is missing; every rank has to call it."""
        if step == 0 or self.every == 0 or step % self.every:
            return False
        records = read_metrics(self.lines)
        made = any(r["step"] == step and any(n.startswith("eval/") for n in r) for r in records)
        return not from_first(made)

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        step = trainer.global_step
        if not self.lacks(step):
            return
        # As behind the step that came before the interruption.
        module.reward_temperature = self.tempering(step - 1)
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True

    def on_validation_epoch_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self.samples = []
        what = "final evaluation" if self.final else f"evaluation at step {trainer.global_step}"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own name
        self._count = Count(what, len(data.evaluation_conditions()))
        self._count.__enter__()

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        module: GFlowNetModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._count is not None:
            self._count.part = batch.conditions[0].group

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: GFlowNetModule,
        outputs: list[ConditionSamples],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.samples += outputs
        if self._count is not None:
            self._count.advance(len(batch.conditions))

    def on_exception(
        self, trainer: L.Trainer, module: GFlowNetModule, exception: BaseException
    ) -> None:
        self._stop_counting()

    def _stop_counting(self) -> None:
        if self._count is not None:
            self._count.__exit__()
            self._count = None

    def on_validation_epoch_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self._stop_counting()
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
