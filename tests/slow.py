"""Cases that only `make test-all` runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Cases of ``pytest.mark.parametrize``, of which `make test` runs those in ``kept``."""
    given = list(cases)
    assert set(kept) <= set(given), "a case that is kept is no case"
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in given]
