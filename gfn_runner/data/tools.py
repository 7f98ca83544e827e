"""Tools that a policy may call while it writes: a calculator, without ``eval``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod


class Tool(ABC):
    """Answers a string that ends in ``trigger``. The answer is an observation, not an action."""

    trigger: str

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """What the tool appends to ``text``, or ``None`` for nothing."""


class Calculator(Tool):
    """Appends the value of the sum or difference before a final ``=``.

    It reads the whole expression back to the last comma (or other text): ``2 - 8 =`` gives `` -6``
    and ``1 + 2 + 3 =`` gives `` 6``. What is no chain of integers (of at most 18 digits) with ``+``
    and ``-`` gets no answer.
    """

    trigger = "="
    _EXPRESSION = re.compile(
        r"(?:^|[,;:?\n]|\.(?!\d))\s*(-?\d{1,18}(?:\s*[+-]\s*\d{1,18})*)\s*=\s*$", re.ASCII
    )
    _NUMBER_OR_SIGN = re.compile(r"\d+|[+-]", re.ASCII)

    def answer(self, text: str) -> str | None:
        found = self._EXPRESSION.search(text)
        if found is None:
            return None
        value, sign = 0, 1
        for piece in self._NUMBER_OR_SIGN.findall(found.group(1)):
            if piece in "+-":
                sign = -1 if piece == "-" else 1
            else:
                value, sign = value + sign * int(piece), 1
        return f" {value}"
