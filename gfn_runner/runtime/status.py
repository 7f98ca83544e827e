"""A line in the log every half minute while a long piece of work would say nothing; measures nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from gfn_runner.distributed.ranks import is_first

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds between two lines


class Count:
    """Within it a line says every ``EVERY`` seconds how much is done; of several ranks the first one's.

    Of counts within one another the outermost speaks. Counts that follow each other share the half
    minute: many short ones are not silent either.

    Attributes:
        what: the work, for the line.
        total, done: in ``unit``.
        part: of the work, for the line: an evaluation set, say.
    """

    _open: Count | None = None
    _spoken = _left = float("-inf")  # the newest line, and the end of the newest count; seconds
    _silent = 0

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "conditions",
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.what, self.total, self.unit = what, total, unit
        self.part, self.done = "", 0
        self._clock, self._began = clock, clock()
        self._end = threading.Event()

    def __enter__(self) -> Count:
        if Count._open is None and is_first():
            Count._open = self
            if self._began > Count._left + EVERY:
                Count._spoken = self._began
            threading.Thread(target=self.speak, args=(self._end.wait,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._end.set()
        if Count._open is self:
            Count._open, Count._left = None, self._clock()

    def advance(self, n: int = 1) -> None:
        """Count what is done."""
        self.done += n

    def speak(self, wait: Callable[[float], bool]) -> None:
        """Say lines until ``wait``, which takes seconds, returns that the work has ended."""
        while not wait(max(0.0, Count._spoken + EVERY - self._clock())):
            now = self._clock()
            if now < Count._spoken + EVERY:
                continue
            Count._spoken = now
            if not Count._silent:
                logger.info("%s", self.line())

    def line(self) -> str:
        """``evaluation, base_3_shot (4_operands): 75 of 600 conditions, 3 min left``."""
        part = f" ({self.part})" if self.part else ""
        said = f"{self.what}{part}: {self.done} of {self.total} {self.unit}"
        if not self.done:
            return said
        seconds = (self._clock() - self._began) / self.done * max(0, self.total - self.done)
        return f"{said}, {duration(seconds)} left"


def silence(change: int) -> None:
    """No lines from +1 until −1: a bar is on the screen, or nothing is to be shown."""
    Count._silent += change


@contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """No lines within it; whatever is silenced within it ends with it."""
    before = Count._silent
    silence(int(wanted))
    try:
        yield
    finally:
        Count._silent = before


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
