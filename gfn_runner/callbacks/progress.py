"""Progress: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import lightning as L
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.report.headline import evaluation_line
from gfn_runner.runtime.status import EVERY, duration, mute_progress_lines
from gfn_runner.tasks.base import GFlowNetModule

# In order of importance: a narrow terminal has no room for the last ones.
_SHOWN = {
    "train/loss": "loss",
    "train/log_reward": "log R",
    "train/phi_spread": "φ spread",
    "train/reward_temperature": "T",
    "train/tokens_per_second": "tokens/s",
}

_BAR = 30  # columns for description, shortest bar, remaining time and the gaps


class StepProgress(L.Callback):
    """Displays optimizer steps with the latest training scalars and evaluation metrics.

    In a terminal, it shows a bar; elsewhere, a plain line every ``every_n_steps`` steps, whatever the
    terminal width, and one for the first step of a resumed run. Each evaluation gets a line in both cases.
    Only rank 0 displays anything.

    Args:
        show: ``auto`` shows a bar in a terminal, else lines; ``bar`` and ``lines`` force one; or ``none``.
        every_n_steps: optimizer steps between two lines; fewer if they take more than 30 s.
    """

    def __init__(
        self,
        show: Literal["auto", "bar", "lines", "none"] = "auto",
        every_n_steps: Annotated[int, Field(ge=1)] = 10,
    ) -> None:
        self.show, self.every_n_steps = show, every_n_steps
        self.console = Console()
        self._bars: Progress | None = None
        self._task: Any = None
        self._shown_step = -1
        self._first_step, self._started = 0, 0.0
        self._clock, self._said = time.perf_counter, 0.0

    def setup(self, trainer: L.Trainer, module: GFlowNetModule, stage: str) -> None:
        if not is_rank_zero():
            self.show = "none"

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        self._first_step, self._started = trainer.global_step, self._clock()
        self._said = self._started
        if self.show == "bar" or (self.show == "auto" and self.console.is_terminal):
            self._bars = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(bar_width=None),  # the rest of the line
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[scalars]}"),
                console=self.console,
                expand=True,
            )
            self._task = self._bars.add_task(
                "training", total=trainer.max_steps, completed=trainer.global_step, scalars=""
            )
            self._bars.start()
            mute_progress_lines(+1)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: Any, *_: Any
    ) -> None:
        step = trainer.global_step
        log = find_callback(trainer, TrainingLog)
        latest = log.latest if log is not None else {}
        if step == self._shown_step or not latest:
            return
        self._shown_step = step
        # Scalars that are undefined for a batch are absent.
        scalars = {label: f"{latest[n]:.3g}" for n, label in _SHOWN.items() if n in latest}
        if self._bars is not None:
            fitting = self._fitting(scalars, trainer.max_steps)
            self._bars.update(self._task, completed=step, scalars=fitting)
        elif self.show != "none" and self._is_due(step):
            seconds = f"{latest['train/seconds']:.1f} s/step"
            # Average pace since training was started or resumed, including evaluations.
            pace = (self._clock() - self._started) / max(1, step - self._first_step)
            left = f"{duration((trainer.max_steps - step) * pace)} left"
            shown = (f"{label} {value}" for label, value in scalars.items())
            self._say("  ".join([f"step {step}/{trainer.max_steps}", *shown, seconds, left]))

    def _fitting(self, scalars: Mapping[str, str], max_steps: int) -> str:
        """Return the first scalars that fit into the terminal, in columns of constant width."""
        room, line = self.console.width - _BAR - 2 * len(str(max_steps)), ""
        for label, value in scalars.items():
            column = f"{label} {value:<6} "
            if len(line) + len(column) > room:
                break
            line += column
        return line

    def _is_due(self, step: int) -> bool:
        """Return whether to print a line: every n steps, and after the first step of a resumed run.

        If steps are slow, also after half a minute without a line.
        """
        is_late = self._clock() - self._said >= EVERY
        return step == self._first_step + 1 or step % self.every_n_steps == 0 or is_late

    def _say(self, line: str) -> None:
        # Without soft_wrap, rich breaks lines at 80 columns if there is no terminal.
        self.console.print(line, soft_wrap=True, markup=False)
        self._said = self._clock()

    def on_validation_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="evaluating")

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._bars is not None:
            self._bars.update(self._task, description="training")
        evaluation = find_callback(trainer, EvaluationCallback)
        if self.show != "none" and not module.final and evaluation is not None:
            step, metrics = trainer.global_step, evaluation.metrics
            self._say(evaluation_line(module.headline, step, metrics))

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
            mute_progress_lines(-1)
