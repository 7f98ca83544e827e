"""Evaluation: collect the samples of validation, compute the task's metrics and log them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import lightning as L
from pydantic import Field

from gfn_runner.callbacks.log_metrics import check_monitors, log_metrics
from gfn_runner.callbacks.reward_tempering import reward_schedule
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Batch
from gfn_runner.distributed.ranks import compute_on_rank_zero
from gfn_runner.evaluation.measure import measure
from gfn_runner.runtime.json_lines import is_logged
from gfn_runner.runtime.status import ProgressLogger
from gfn_runner.tasks.base import GFlowNetModule


class EvaluationCallback(L.Callback):
    """Stores the latest evaluation, and repeats one that was lost to an interruption.

    A checkpoint is written before the evaluation of the same step, so a signal need not wait for it. A run
    resumed from it first evaluates if ``metrics.jsonl`` has no evaluation for that step.

    Args:
        every_n_steps: optimizer steps between evaluations; 0 disables evaluation during training.

    Attributes:
        samples: samples of the latest evaluation.
        metrics: the task's metrics for them; names have no prefix.
    """

    def __init__(self, every_n_steps: Annotated[int, Field(ge=0)] = 50) -> None:
        self.every_n_steps = every_n_steps
        self.samples: list[ConditionSamples] = []
        self.metrics: dict[str, float] = {}
        self._count: ProgressLogger | None = None

    def lacks(self, trainer: L.Trainer) -> bool:
        """Return whether the evaluation of the current step is missing. Must be called on every rank."""
        step, every = trainer.global_step, self.every_n_steps
        if step == 0 or every == 0 or step % every:
            return False
        log = Path(trainer.default_root_dir) / "metrics.jsonl"
        return not compute_on_rank_zero(lambda: is_logged(log, step, "eval/"))

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if not self.lacks(trainer):
            return
        # As it was after the step before the interruption.
        module.reward_temperature = reward_schedule(trainer)(trainer.global_step - 1)
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True

    def on_validation_epoch_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self.samples = []
        what = "final evaluation" if module.final else f"evaluation at step {trainer.global_step}"
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own name
        self._count = ProgressLogger(what, len(data.evaluation_conditions()))
        self._count.__enter__()

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: GFlowNetModule, batch: Batch, *_: Any
    ) -> None:
        if self._count is not None:
            self._count.part = batch.conditions[0].group

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        module: GFlowNetModule,
        outputs: list[ConditionSamples],
        batch: Batch,
        *_: Any,
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
            module,
            self.samples,
            temperature=module.reward_temperature,
            encoder=module.evaluation.encoder,
        )
        # The final evaluation has more conditions, hence a separate series.
        prefix = "final" if module.final else "eval"
        named = {f"{prefix}/{name}": value for name, value in self.metrics.items()}
        log_metrics(trainer, named)
        if not module.final:
            check_monitors(trainer)
