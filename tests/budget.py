"""How many cases a property or a fuzz test tries: its own number, times ``--budget``."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

FACTOR = 1.0
_SEED = random.SystemRandom().randrange(10**6)

# Drawing a model takes longer than hypothesis likes; nothing is kept between runs.
_COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
# make mutation asks whether a case fails, and not for the smallest one.
if "MUTANT_UNDER_TEST" in os.environ:
    _COMMON["phases"] = (Phase.explicit, Phase.generate)


def set_budget(factor: float) -> None:
    """Profile ``ci``, the same cases in every run; with a factor above 1 ``long``, others each time."""
    global FACTOR
    FACTOR = factor
    settings.register_profile("ci", derandomize=True, **_COMMON)
    settings.register_profile("long", print_blob=True, **_COMMON)
    settings.load_profile("long" if factor > 1 else "ci")


def cases(number: int) -> int:
    """``number`` times the budget; at least one."""
    return max(1, round(number * FACTOR))


def examples(number: int) -> Callable[[Any], Any]:
    """Decorator of a property: it is tried on so many examples, times the budget."""
    return settings(max_examples=cases(number))


def seed() -> int:
    """Of random cases: 0, the same ones in every run; with a budget above 1 others each time."""
    return _SEED if FACTOR > 1 else 0


def with_budget(given: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Cases of ``pytest.mark.parametrize``, of which a budget of 1 runs those in ``kept``."""
    return [case for case in given if FACTOR > 1 or case in kept]
