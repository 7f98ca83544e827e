"""A wall clock that is unaffected by changes to the system clock."""

from __future__ import annotations

import time

_OFFSET = time.time() - time.monotonic()


def steady_time() -> float:
    """Return seconds since 1970: the system time at process start plus monotonic time since then.

    Differences are therefore durations and never negative, even if the system clock is changed.
    """
    return _OFFSET + time.monotonic()
