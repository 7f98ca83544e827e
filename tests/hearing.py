"""Signals as a terminal's own programs hear them, also behind a shell's `&` or under `nohup`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest


def hear() -> None:
    """Undo what is inherited: behind `&` Ctrl-C is ignored, under `nohup` the end of a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def as_before() -> Iterator[None]:
    """All signals are heard, and every handler is put back afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
    handlers = {number: signal.getsignal(number) for number in numbers}
    hear()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    """A signal to this process."""
    os.kill(os.getpid(), number)
