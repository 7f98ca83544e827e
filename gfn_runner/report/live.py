"""The pages of a run that is going on, written by its own process; a page that fails never ends a run."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gfn_runner.config.schemas import ReportSettings
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.report.history import History
from gfn_runner.report.run_page import NEWEST, PAGE, write_run_page
from gfn_runner.report.runs import read_run
from gfn_runner.report.samples import sample_record
from gfn_runner.report.states import Word
from gfn_runner.report.sweep_page import write_sweep_page
from gfn_runner.report.sweeps import Sweep, is_sweep
from gfn_runner.runtime.json_lines import write_lines

logger = logging.getLogger(__name__)
# Of an evaluation set, and of a condition: as many as a page shows, and more.
_CONDITIONS, _SINGLES = 4, 8
_SHARE = 50  # of its time a run spends at most one in so many on its sweep's page


class LivePages:
    """``report.html`` of a run, and of the sweep that it is a job of."""

    def __init__(self, folder: Path, options: ReportSettings):
        self.folder, self.options = folder, options
        self._history = History(folder / "metrics.jsonl")
        self._sweep = Sweep(folder.parent)
        self._sweep_due = 0.0
        self._told: set[str] = set()

    def begun(self) -> None:
        self._write("running")

    def evaluated(self, step: int, samples: Sequence[ConditionSamples]) -> None:
        records = [{"step": step, **sample_record(own, _SINGLES)} for own in _few(samples)]
        with self._excused():
            write_lines(self.folder / NEWEST, records)
        self._write("running")

    def interrupted(self) -> None:
        self._write("interrupted", at_once=True)

    def ended(self) -> None:
        """The run has finished or failed, as its folder says."""
        if self.options.pages != "off":
            self._write(None, at_once=True)

    def _write(self, told: Word | None, *, at_once: bool = False) -> None:
        if (self.folder / "config.yaml").is_file():
            with self._excused():
                write_run_page(self.folder, self._history, told)
        if is_sweep(self.folder.parent) and (at_once or self._sweep_is_due()):
            before = time.perf_counter()
            with self._excused():
                write_sweep_page(self._sweep, {self.folder.name: told} if told else None)
            self._sweep_due = time.time() + _SHARE * (time.perf_counter() - before)

    def _sweep_is_due(self) -> bool:
        """Whether neither this job nor another has written the sweep's page just now."""
        age = float("inf")
        with contextlib.suppress(OSError):
            age = time.time() - (self.folder.parent / PAGE).stat().st_mtime
        return age >= self.options.pause and time.time() >= self._sweep_due

    def _excused(self) -> contextlib.AbstractContextManager[None]:
        return excused(self._say)

    def _say(self, reason: str) -> None:
        # A disk that is full is so at every evaluation.
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("no page: %s; the run goes on", reason)


@contextlib.contextmanager
def excused(say: Callable[[str], None]) -> Iterator[None]:
    """Within it nothing that a page runs into gets out, but one line on it."""
    try:
        yield
    except UserError as error:
        say("; ".join(map(str, error.problems)))
    except OSError as error:
        say(str(error))
    except Exception as error:  # a fault of the page's is none of the run's
        say(f"{type(error).__name__}: {error}")


def end_pages(folder: Path) -> None:
    """Write the pages of a run that has just ended, well or not, as its config says."""
    options = ReportSettings()
    with contextlib.suppress(UserError, ValueError, TypeError):
        options = ReportSettings(**read_run(folder).config.get("callbacks", {}).get("report", {}))
    LivePages(folder, options).ended()


def _few(samples: Sequence[ConditionSamples]) -> list[ConditionSamples]:
    met: Counter[str] = Counter()
    few = []
    for own in samples:
        met[own.condition.group] += 1
        if met[own.condition.group] <= _CONDITIONS:
            few.append(own)
    return few
