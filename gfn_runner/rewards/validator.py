"""A Python function that accepts or rejects texts, as a factor of a posterior."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gfn_runner.data.conditions import Condition
from gfn_runner.errors import Problem

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel


@dataclass(frozen=True)
class Validator:
    """log c(z) = 0 where the function returns a true value, else −penalty.

    Attributes:
        function: import path ``package.module.name`` of a function from a text to a truth value.
        penalty: nats, above 0.
    """

    function: str
    penalty: float = 10.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        return 0.0 if self.satisfied(condition, lm.decode(prefix)) else -self.penalty

    def satisfied(self, condition: Condition, text: str) -> bool:
        return bool(imported(self.function)(text))


def imported(path: str) -> Callable[[str], bool]:
    """The function at an import path. Raises ``ImportError`` or ``AttributeError``."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ImportError("no module is named")
    return getattr(importlib.import_module(module_name), name)


def validator_problems(key: str, path: str) -> Iterator[Problem]:
    """Whether there is such a function; for ``Task.problems``."""
    try:
        found = callable(imported(path))
    except (ImportError, AttributeError, ValueError) as error:
        yield Problem(key, f"cannot import {path!r}: {error}", "package.module.function, or null")
        return
    if not found:
        yield Problem(key, f"{path} is no function", "a function from a text to True or False")
