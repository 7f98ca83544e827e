"""Progress: rich bars in a terminal, plain lines elsewhere; measures nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import Progress

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.progress_bar import FittedLine
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.config.schemas import ProgressSettings
from gfn_runner.module import GFlowNetModule
from gfn_runner.runtime.status import EVERY, duration, silence

# The most important first: a narrow terminal has no room for the last ones.
_SHOWN = {
    "train/loss": "loss",
    "train/log_reward": "log R",
    "train/phi_spread": "φ spread",
    "train/reward_temperature": "T",
    "train/tokens_per_second": "tokens/s",
}


class StepProgress(L.Callback):
    """Optimizer steps out of all, with the newest training scalars and evaluation figures.

    In a terminal a bar; elsewhere a line every ``every`` steps, in plain text that no terminal's width
    breaks, one at the first step of a run that goes on included. Either way a line for each evaluation:
    ``evaluation_line`` of its step and metrics. Of several ranks the first one is given a ``show`` other
    than ``none``.
    """

    def __init__(
        self,
        options: ProgressSettings,
        log: TrainingLog,
        evaluation: EvaluationCallback,
        evaluation_line: Callable[[int, Mapping[str, float]], str],
    ):
        # Lightning puts a function of its own at self.log.
        self.options, self.training_log, self.evaluation = options, log, evaluation
        self.evaluation_line = evaluation_line
        self.console = Console()
        self._bars: Progress | None = None
        self._task: Any = None
        self._shown_step = -1
        self._first_step, self._started = 0, 0.0
        self._clock, self._said = time.perf_counter, 0.0

    @property
    def draws_bars(self) -> bool:
        automatic = self.options.show == "auto" and self.console.is_terminal
        return automatic or self.options.show == "bar"

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self._first_step, self._started = trainer.global_step, self._clock()
        self._said = self._started
        if self.draws_bars:
            self._bars = Progress(FittedLine(), console=self.console)
            self._task = self._bars.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, scalars=()
            )
            self._bars.start()
            silence(+1)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._shown_step or not self.training_log.latest:
            return
        self._shown_step = step
        latest = self.training_log.latest
        # Of some batches a scalar means nothing, and is absent.
        scalars = [
            f"{label} {latest[name]:.3g}" for name, label in _SHOWN.items() if name in latest
        ]
        if self._bars is not None:
            self._bars.update(self._task, completed=step, scalars=scalars)
        elif self.options.show != "none" and self._is_due(step):
            seconds = f"{latest['train/seconds']:.1f} s/step"
            left = f"{duration(self._seconds_left(step, trainer.max_steps))} left"
            self._say("  ".join([f"step {step}/{trainer.max_steps}", *scalars, seconds, left]))

    def _is_due(self, step: int) -> bool:
        """Of a run that goes on, the first step too: else it would look for long as if it did not.

        And where steps are slow, whichever ends half a minute after the newest line.
        """
        is_late = self._clock() - self._said >= EVERY
        return step == self._first_step + 1 or step % self.options.every == 0 or is_late

    def _seconds_left(self, step: int, max_steps: int) -> float:
        """At the pace since training began (or went on), evaluations included."""
        done = step - self._first_step
        return (max_steps - step) * (self._clock() - self._started) / max(1, done)

    def _say(self, line: str) -> None:
        # Soft: otherwise rich breaks lines at 80 columns where there is no terminal.
        self.console.print(line, soft_wrap=True, markup=False)
        self._said = self._clock()

    def on_validation_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="evaluating")

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="training")
        if self.options.show == "none" or self.evaluation.final:
            return
        self._say(self.evaluation_line(trainer.global_step, self.evaluation.metrics))

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
            silence(-1)
