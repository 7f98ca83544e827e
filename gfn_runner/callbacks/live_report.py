"""Live report: says when a run's page is due, and what is new on it; writes and draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import lightning as L

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.config.schemas import ReportSettings
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.distributed.ranks import is_first
from gfn_runner.module import GFlowNetModule


class Pages(Protocol):
    """The pages of a run; none of these ever raises because a page cannot be written."""

    def begun(self) -> None:
        """Training begins or goes on."""

    def evaluated(self, step: int, samples: Sequence[ConditionSamples]) -> None:
        """There are new samples and metrics."""

    def interrupted(self) -> None:
        """Training ends before its time, by a user's or a machine's wish."""


class LiveReport(L.Callback):
    """Has the pages written when training begins, after each evaluation and at an interruption.

    The last ones are the recipe's to write: rows below the policy come after training, and a baseline
    may train nothing. It passes on the samples of the callback of evaluations.
    """

    def __init__(self, options: ReportSettings, evaluation: EvaluationCallback, pages: Pages):
        self.options, self.evaluation, self.pages = options, evaluation, pages

    @property
    def _due(self) -> bool:
        return self.options.pages == "live" and is_first()

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._due:
            self.pages.begun()

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        # The final evaluation's samples are written whole by the recipe.
        if self._due and not self.evaluation.final:
            self.pages.evaluated(trainer.global_step, self.evaluation.samples)

    def on_exception(
        self, trainer: L.Trainer, module: GFlowNetModule, exception: BaseException
    ) -> None:
        # Of an error the recipe leaves the reason in the log first, and then a page.
        stops = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stops and self.options.pages != "off" and is_first():
            self.pages.interrupted()
