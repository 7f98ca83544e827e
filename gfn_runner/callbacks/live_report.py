"""The live page of a run: written when training starts, after each evaluation and at an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import lightning as L
from pydantic import Field

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.report.live import LivePages
from gfn_runner.tasks.base import GFlowNetModule


class LiveReport(L.Callback):
    """Has the pages written when training begins, after each evaluation and at an interruption.

    The last page is written by ``train.py``: baseline rows come after training.

    Args:
        pages: ``live``; ``end`` only at the end; ``off`` never (``python -m gfn_runner.report --pages``
            makes them later).
        refresh: seconds after which a browser loads the page of an unfinished run again.
        pause: seconds at least between two pages of a sweep, which several jobs may write; and at least
            fifty times as long as the last one took.
    """

    def __init__(
        self,
        pages: Literal["live", "end", "off"] = "live",
        refresh: Annotated[int, Field(ge=1)] = 30,
        pause: Annotated[float, Field(ge=0)] = 30.0,
    ) -> None:
        self.pages, self.refresh, self.pause = pages, refresh, pause
        self.writer: LivePages | None = None
        self.evaluation: EvaluationCallback | None = None

    def setup(self, trainer: L.Trainer, module: GFlowNetModule, stage: str) -> None:
        self.evaluation = find_callback(trainer, EvaluationCallback)
        if self.writer is None:
            folder = Path(trainer.default_root_dir)
            self.writer = LivePages(
                folder, pages=self.pages, refresh=self.refresh, pause=self.pause
            )

    @property
    def _due(self) -> bool:
        return self.pages == "live" and is_rank_zero()

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self._due and self.writer is not None:
            self.writer.begun()

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        # The final evaluation's samples are written whole by the recipe.
        if self._due and self.writer and self.evaluation and not module.final:
            self.writer.evaluated(trainer.global_step, self.evaluation.samples)

    def on_exception(
        self, trainer: L.Trainer, module: GFlowNetModule, exception: BaseException
    ) -> None:
        # Of an error the recipe leaves the reason in the log first, and then a page.
        stops = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stops and self.writer is not None and self.pages != "off" and is_rank_zero():
            self.writer.interrupted()
