"""``report.html`` of a run and its sweep, updated during training; page errors never end a run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
from pydantic import Field

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.lookup import find_callback
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.errors import UserError
from gfn_runner.report.run_page import NEWEST, PAGE, write_run_page
from gfn_runner.report.runs import read_run
from gfn_runner.report.samples import first_of_each_set, sample_record
from gfn_runner.report.saved_config import callback_arguments
from gfn_runner.report.sweep_page import write_sweep_page
from gfn_runner.runtime.json_lines import write_lines
from gfn_runner.runtime.sweep_record import StateName, is_sweep
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)
# Conditions per evaluation set and singles per condition; at least as many as a page shows.
_CONDITIONS, _SINGLES = 4, 8
_SHARE = 50  # a run spends at most 1/50 of its time on the sweep's page


class LiveReport(L.Callback):
    """Writes the pages at the start of training, after each evaluation and on interruption.

    :func:`end_pages` writes the last ones, since baseline rows come after training.

    Args:
        pages: ``live``; ``end`` only at the end; ``off`` never (``python -m gfn_runner.report --pages``
            creates them later).
        refresh: seconds after which a browser reloads the page of an unfinished run.
        pause: minimum number of seconds between two updates of a sweep's page, which several jobs may write;
            always at least fifty times as long as the last update took.
    """

    def __init__(
        self,
        pages: Literal["live", "end", "off"] = "live",
        refresh: Annotated[int, Field(ge=1)] = 30,
        pause: Annotated[float, Field(ge=0)] = 30.0,
    ) -> None:
        self.pages, self.refresh, self.pause = pages, refresh, pause
        self.folder: Path | None = None
        self._sweep_due = 0.0
        self._warned: set[str] = set()

    def begin(self, folder: Path) -> LiveReport:
        """Set the folder of the run to write pages for."""
        self.folder = folder
        return self

    def setup(self, trainer: L.Trainer, module: GFlowNetModule, stage: str) -> None:
        if self.folder is None:
            self.begin(Path(trainer.default_root_dir))

    def on_train_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        if self.pages == "live" and is_rank_zero():
            self.write("running")

    def on_validation_end(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        # The samples of the final evaluation are written in full after training.
        evaluation = find_callback(trainer, EvaluationCallback)
        if self.pages == "live" and evaluation and not module.final and is_rank_zero():
            self.evaluated(trainer.global_step, evaluation.samples)

    def on_exception(
        self, trainer: L.Trainer, module: GFlowNetModule, exception: BaseException
    ) -> None:
        # After an error, ``train.py`` first logs the reason and then writes a page.
        stops = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stops and self.pages != "off" and is_rank_zero():
            self.write("interrupted", at_once=True)

    def evaluated(self, step: int, samples: Sequence[ConditionSamples]) -> None:
        assert self.folder is not None
        records = [{"step": step, **sample_record(own, _SINGLES)} for own in samples]
        with warn_of_errors(self._warn):
            write_lines(self.folder / NEWEST, first_of_each_set(records, _CONDITIONS))
        self.write("running")

    def write(self, state: StateName | None, *, at_once: bool = False) -> None:
        """Write the run's page, and also the sweep's if it is due or ``at_once`` is set."""
        folder = self.folder
        if folder is None:
            return
        if (folder / "config.yaml").is_file():
            with warn_of_errors(self._warn):
                write_run_page(folder, state)
        if is_sweep(folder.parent) and (at_once or self._sweep_is_due(folder.parent)):
            before = time.perf_counter()
            with warn_of_errors(self._warn):
                write_sweep_page(folder.parent, {folder.name: state} if state else None)
            self._sweep_due = time.monotonic() + _SHARE * (time.perf_counter() - before)

    def _sweep_is_due(self, sweep: Path) -> bool:
        """Return whether neither this job nor another one has just written the sweep's page."""
        age = float("inf")
        with contextlib.suppress(OSError):
            age = time.time() - (sweep / PAGE).stat().st_mtime
        # A modification time in the future predates a clock that was set back.
        return not 0 <= age < self.pause and time.monotonic() >= self._sweep_due

    def _warn(self, reason: str) -> None:
        # Warn only once: a full disk fails at every evaluation.
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("report page not written: %s; the run continues", reason)


@contextlib.contextmanager
def warn_of_errors(warn: Callable[[str], None]) -> Iterator[None]:
    """Turn errors within the context into warnings, since a page must not end the run."""
    try:
        yield
    except (UserError, OSError) as error:
        warn(str(error))
    except Exception as error:
        warn(f"{type(error).__name__}: {error}")


def end_pages(folder: Path) -> None:
    """Write the pages of a run that has just ended, successfully or not, according to its config."""
    options: dict[str, Any] = {}
    with contextlib.suppress(UserError, ValueError, TypeError):
        options = callback_arguments(read_run(folder).config, "report") or {"pages": "off"}
    report = LiveReport(**options)
    if report.pages != "off":
        report.begin(folder).write(None, at_once=True)
