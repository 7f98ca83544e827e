"""Progress lines in the log, every half minute, during long work that would otherwise log nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from gfn_runner.distributed.ranks import is_rank_zero

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines


class ProgressLogger:
    """Context that logs progress at most once every ``EVERY`` seconds, on rank 0 only.

    Of nested contexts, only the outermost logs. Consecutive contexts share the interval, so that a series of
    many short ones still logs.

    Attributes:
        part: current part of the work, shown in the line, e.g. an evaluation set.
    """

    _open: ProgressLogger | None = None
    _last_line = _last_end = float("-inf")  # of any context, in seconds
    _muted = 0

    def __init__(self, what: str, total: int, unit: str = "conditions"):
        self.what, self.total, self.unit = what, total, unit
        self.part, self.done = "", 0
        self._began = monotonic()

    def __enter__(self) -> ProgressLogger:
        if ProgressLogger._open is None and is_rank_zero():
            ProgressLogger._open = self
            if self._began > ProgressLogger._last_end + EVERY:
                ProgressLogger._last_line = self._began
        return self

    def __exit__(self, *error: object) -> None:
        if ProgressLogger._open is self:
            ProgressLogger._open, ProgressLogger._last_end = None, monotonic()

    def advance(self, n: int = 1) -> None:
        """Add ``n`` to the completed work."""
        self.done += n
        now = monotonic()
        if ProgressLogger._open is self and now >= ProgressLogger._last_line + EVERY:
            ProgressLogger._last_line = now
            if not ProgressLogger._muted:
                logger.info("%s", self.line())

    def line(self) -> str:
        """Format ``evaluation, base_3_shot (4_operands): 75 of 600 conditions, 3 min left``."""
        part = f" ({self.part})" if self.part else ""
        line = f"{self.what}{part}: {self.done} of {self.total} {self.unit}"
        seconds = (monotonic() - self._began) / self.done * max(0, self.total - self.done)
        return f"{line}, {duration(seconds)} left"


def mute_progress_lines(change: int) -> None:
    """Mute progress lines with +1 and unmute them with −1, while a progress bar shows the same."""
    ProgressLogger._muted += change


@contextmanager
def muted_progress_lines(wanted: bool = True) -> Iterator[None]:
    """Mute progress lines within the context; exiting also undoes :func:`mute_progress_lines` inside it."""
    before = ProgressLogger._muted
    mute_progress_lines(int(wanted))
    try:
        yield
    finally:
        ProgressLogger._muted = before


def duration(seconds: float) -> str:
    """Format a duration: ``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
