"""Signals as a terminal's own programs hear them, also behind a shell's `&` or under `nohup`."""

from __future__ import annotations

import signal


def hear() -> None:
    """Undo what is inherited: behind `&` Ctrl-C is ignored, under `nohup` the end of a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
