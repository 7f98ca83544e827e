"""Pages that a run writes while it trains; an error in a page never ends a run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.report.history import History
from gfn_runner.report.run_page import NEWEST, PAGE, write_run_page
from gfn_runner.report.runs import callback_arguments, read_run
from gfn_runner.report.samples import first_of_each_set, sample_record
from gfn_runner.report.states import StateName
from gfn_runner.report.sweep_jobs import SweepJobs, is_sweep
from gfn_runner.report.sweep_page import write_sweep_page
from gfn_runner.runtime.json_lines import write_lines

logger = logging.getLogger(__name__)
# Of an evaluation set, and of a condition: at least as many as a page shows.
_CONDITIONS, _SINGLES = 4, 8
_SHARE = 50  # a run spends at most one in so many of its seconds on its sweep's page


class LivePages:
    """``report.html`` of a run, and of the sweep that it is a job of."""

    def __init__(
        self, folder: Path, *, pages: str = "live", refresh: int = 30, pause: float = 30.0
    ) -> None:
        self.folder, self.pages, self.refresh, self.pause = folder, pages, refresh, pause
        self._history = History(folder / "metrics.jsonl")
        self._sweep = SweepJobs(folder.parent)
        self._sweep_due = 0.0
        self._warned: set[str] = set()

    def begun(self) -> None:
        self._write("running")

    def evaluated(self, step: int, samples: Sequence[ConditionSamples]) -> None:
        records = [{"step": step, **sample_record(own, _SINGLES)} for own in samples]
        with warn_of_errors(self._warn):
            write_lines(self.folder / NEWEST, first_of_each_set(records, _CONDITIONS))
        self._write("running")

    def interrupted(self) -> None:
        self._write("interrupted", at_once=True)

    def ended(self) -> None:
        """The run has finished or failed, as its folder says."""
        if self.pages != "off":
            self._write(None, at_once=True)

    def _write(self, state_name: StateName | None, *, at_once: bool = False) -> None:
        if (self.folder / "config.yaml").is_file():
            with warn_of_errors(self._warn):
                write_run_page(self.folder, self._history, state_name)
        if is_sweep(self.folder.parent) and (at_once or self._sweep_is_due()):
            before = time.perf_counter()
            with warn_of_errors(self._warn):
                write_sweep_page(
                    self._sweep, {self.folder.name: state_name} if state_name else None
                )
            self._sweep_due = time.time() + _SHARE * (time.perf_counter() - before)

    def _sweep_is_due(self) -> bool:
        """Whether neither this job nor another has written the sweep's page just now."""
        age = float("inf")
        with contextlib.suppress(OSError):
            age = time.time() - (self.folder.parent / PAGE).stat().st_mtime
        return age >= self.pause and time.time() >= self._sweep_due

    def _warn(self, reason: str) -> None:
        # A disk that is full is so at every evaluation.
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("no page: %s; the run goes on", reason)


@contextlib.contextmanager
def warn_of_errors(warn: Callable[[str], None]) -> Iterator[None]:
    """Within it an error of a page becomes a warning."""
    try:
        yield
    except UserError as error:
        warn("; ".join(map(str, error.problems)))
    except OSError as error:
        warn(str(error))
    except Exception as error:  # a fault of the page must not end the run
        warn(f"{type(error).__name__}: {error}")


def end_pages(folder: Path) -> None:
    """Write the pages of a run that has just ended, well or not, as its config says."""
    options: dict[str, Any] = {}
    with contextlib.suppress(UserError, ValueError, TypeError):
        options = callback_arguments(read_run(folder).config, "report") or {"pages": "off"}
    LivePages(folder, **options).ended()
