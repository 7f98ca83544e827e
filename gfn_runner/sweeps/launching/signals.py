"""Signals to a sweep and to the runs that it starts: who is told to end, and when that counts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

# Of a terminal: Ctrl-C, and that it is closed. All that belongs to it gets them at once.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
_TOLD = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ends_when_told() -> Iterator[None]:
    """Within it SIGTERM, and a terminal that is closed, end this process as Ctrl-C does: tidily.

    What is under way learns of it as SystemExit with code 128 + the signal's number. A signal that is
    ignored (``nohup``) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _end) for number in _heard(_TOLD)}
    try:
        yield
    finally:
        _restore(before)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Within it no signal cuts in between a start of processes and its record; it counts behind it.

    A process that is started within it never gets Ctrl-C or the end of a terminal: the sweep gets them,
    and tells it to save and end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    numbers = _heard((*_OF_TERMINALS, signal.SIGTERM))
    before = {n: signal.signal(n, lambda number, _: noted.append(number)) for n in numbers}
    # What is blocked here is blocked in whatever is started, what has a handler here is not.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _restore(before)
        for number in noted[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Within it nothing more is heard: whoever was told to end is about to."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = _heard((*_OF_TERMINALS, signal.SIGTERM))
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        _restore(before)


def _heard(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)
