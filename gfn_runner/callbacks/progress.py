"""Progress: rich bars in a terminal, plain lines elsewhere; measures nothing."""

from __future__ import annotations

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.module import GFlowNetModule
from gfn_runner.settings import ProgressSettings

_SHOWN = {
    "train/loss": "loss",
    "train/log_reward": "log R",
    "train/phi_spread": "φ spread",
    "train/reward_temperature": "T",
}


class StepProgress(L.Callback):
    """Optimizer steps out of all, with the newest training scalars and evaluation figures."""

    def __init__(
        self,
        options: ProgressSettings,
        log: TrainingLog,
        evaluation: EvaluationCallback,
        headline: tuple[str, ...],
    ):
        # Lightning puts a function of its own at self.log.
        self.options, self.training_log, self.evaluation = options, log, evaluation
        self.headline = headline
        self.console = Console()
        self._bars: Progress | None = None
        self._task: Any = None
        self._shown_step = -1

    @property
    def draws_bars(self) -> bool:
        automatic = self.options.show == "auto" and self.console.is_terminal
        return automatic or self.options.show == "bar"

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self.draws_bars:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[scalars]}"),
                console=self.console,
            )
            self._task = self._bars.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, scalars=""
            )
            self._bars.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._shown_step or not self.training_log.latest:
            return
        self._shown_step = step
        latest = self.training_log.latest
        scalars = "  ".join(f"{label} {latest[name]:.3g}" for name, label in _SHOWN.items())
        if self._bars is not None:
            self._bars.update(self._task, completed=step, scalars=scalars)
        elif self.options.show != "none" and (step == 1 or step % self.options.every == 0):
            seconds = f"{latest['train/seconds']:.1f} s/step"
            self.console.print(f"step {step}/{trainer.max_steps}  {scalars}  {seconds}")

    def on_validation_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="evaluating")

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="training")
        if self.options.show == "none" or self.evaluation.final:
            return
        parts = []
        for name in self.headline:
            found = {k: v for k, v in self.evaluation.metrics.items() if k.split("/")[0] == name}
            if found:
                parts += [name, " / ".join(f"{value:.3g}" for value in found.values())]
        self.console.print(f"evaluation at step {trainer.global_step}:", *parts)

    def on_train_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, module: GFlowNetModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
