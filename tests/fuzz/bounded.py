"""A bound on the time that a piece of code may take."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class TooSlow(BaseException):
    """No ``Exception``: what catches all of those must not take it for one of its own."""


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise ``TooSlow`` in code that takes longer. Seconds of this process, whoever else uses the machine."""

    def stop(*_: object) -> None:
        raise TooSlow(f"took more than {seconds} s of CPU time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
