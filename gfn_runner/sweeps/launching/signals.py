"""Signals to a sweep and to the runs that it starts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

# Ctrl-C, and the end of a terminal: every process of the terminal gets them.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
_ALL = (*_OF_TERMINALS, signal.SIGTERM)


@contextlib.contextmanager
def exit_on_termination() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise SystemExit with code 128 + the signal's number.

    A signal that is ignored (``nohup``) stays so.
    """

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    with _handled((signal.SIGTERM, signal.SIGHUP), end):
        yield


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Within it signals wait, so that a process that is started is on record before one takes effect.

    A process that is started within it never gets Ctrl-C or the end of a terminal: the sweep gets them,
    and ends it.
    """
    noted: list[int] = []
    try:
        with _handled(_ALL, lambda number, _: noted.append(number)), _blocked(_OF_TERMINALS):
            yield
    finally:
        for number in noted[:1]:
            signal.raise_signal(number)


def ignore_termination_signals() -> contextlib.AbstractContextManager[None]:
    """Within it Ctrl-C, SIGTERM and the end of a terminal are ignored: the process is about to end."""
    return _handled(_ALL, signal.SIG_IGN)


@contextlib.contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, Any], Any] | signal.Handlers
) -> Iterator[None]:
    """Within it signals that are not ignored have this handler; only the main thread can set one."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        heard = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _blocked(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Within it signals are blocked here, and for good in whatever is started."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
