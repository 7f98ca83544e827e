"""The time of a process: it goes on evenly where the machine's clock is set."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady_time() -> float:
    """Seconds since 1970 by the machine's clock when this process began, and counted evenly from there.

    Differences are durations, never negative, whatever becomes of the machine's clock meanwhile.
    """
    return _OFFSET + time.monotonic()
