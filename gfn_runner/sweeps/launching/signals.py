"""Signal handling of a sweep and of the runs that it starts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

# Ctrl-C and terminal hangup, which every process of the terminal receives.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
_ALL = (*_OF_TERMINALS, signal.SIGTERM)


@contextlib.contextmanager
def exit_on_termination() -> Iterator[None]:
    """Within the context, let SIGTERM and SIGHUP raise SystemExit with code 128 + signal number.

    Ignored signals (``nohup``) stay ignored.
    """

    def end(number: int, frame: Any) -> NoReturn:
        raise SystemExit(128 + number)

    with _handled((signal.SIGTERM, signal.SIGHUP), end):
        yield


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals within the context, so that a started process is recorded before one takes effect.

    A process started within the context never receives Ctrl-C or SIGHUP of the terminal: the sweep receives
    them and stops it.
    """
    noted: list[int] = []
    try:
        with _handled(_ALL, lambda number, _: noted.append(number)), _blocked(_OF_TERMINALS):
            yield
    finally:
        for number in noted[:1]:
            signal.raise_signal(number)


def ignore_termination_signals() -> contextlib.AbstractContextManager[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP within the context, since the process is about to exit."""
    return _handled(_ALL, signal.SIG_IGN)


@contextlib.contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, Any], Any] | signal.Handlers
) -> Iterator[None]:
    """Install the handler for signals that are not ignored; only the main thread can do so."""
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
    """Block signals within the context; processes started in it keep them blocked for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
