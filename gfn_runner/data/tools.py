"""Tools that a policy may call while it writes: a calculator, without ``eval``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Literal

CalculatorScope = Literal["two_operands", "expression"]


class Tool(ABC):
    """Answers a string that ends in ``trigger``. The answer is an observation, not an action."""

    trigger: str

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """What the tool appends to ``text``, or ``None`` for nothing."""


class Calculator(Tool):
    """Appends the value of the sum or difference before a final ``=``.

    It reads the whole expression back to the last comma (or other text): ``2 - 8 =`` gives `` -6``.
    What is no chain of integers (of at most 18 digits) with ``+`` and ``-`` gets no answer.

    Attributes:
        scope: ``"two_operands"`` answers one operation alone, the first operand with a sign or
            without: longer sums are worked out in steps, as in the paper. ``"expression"`` answers
            any number of operands: ``1 + 2 + 3 =`` gives `` 6``.
    """

    trigger = "="
    # A line end is a separator itself: were it a space too, many of them would take quadratic time.
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
