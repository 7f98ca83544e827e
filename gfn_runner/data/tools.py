"""Tools that a policy can call while it generates: a calculator, implemented without ``eval``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Literal

CalculatorScope = Literal["two_operands", "expression"]


class Tool(ABC):
    """A tool that answers strings ending in ``trigger``. The answer is an observation, not an action."""

    trigger: str

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """Return the text that the tool appends to ``text``, or ``None`` for no answer."""


class Calculator(Tool):
    """A calculator that appends the value of the sum or difference before a final ``=``.

    The expression extends back to the last comma or other separator: ``2 - 8 =`` gives `` -6``. Anything
    other than a chain of integers (at most 18 digits each) with ``+`` and ``-`` gets no answer.

    Attributes:
        scope: ``"two_operands"`` answers single operations only, whose first operand may be signed, so
            longer sums must be worked out in steps, as in the paper. ``"expression"`` answers any number
            of operands: ``1 + 2 + 3 =`` gives `` 6``.
    """

    trigger = "="
    # A newline counts as separator only: if it also counted as space, many would take quadratic time.
    _EXPRESSION = re.compile(
        r"(?:^|[,;:?\n]|\.(?!\d))[^\S\n]*(-?\d{1,18}(?:\s*[+-]\s*\d{1,18})*)\s*=\s*$", re.ASCII
    )
    _OPERAND = re.compile(r"([+-]?)\s*(\d+)", re.ASCII)

    def __init__(self, scope: CalculatorScope = "two_operands"):
        self.scope = scope

    def answer(self, text: str) -> str | None:
        found = self._EXPRESSION.search(text)
        if found is None:
            return None
        operands = [int(sign + digits) for sign, digits in self._OPERAND.findall(found.group(1))]
        if self.scope == "two_operands" and len(operands) != 2:
            return None
        return f" {sum(operands)}"
