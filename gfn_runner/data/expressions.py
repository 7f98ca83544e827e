"""Sums and differences of one-digit numbers: drawing, evaluating and splitting them.

An *expression* is a left-to-right chain such as ``6 - 0 - 4 - 8``. All code that writes or parses
expressions (the embedded corpus, the arithmetic task, the answer parser) uses this module, so the
split into training and test questions is defined in one place.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

HELD_OUT_MODULUS = 5


@dataclass(frozen=True)
class Expression:
    """A left-to-right chain of additions and subtractions.

    Attributes:
        operands: the numbers in order; at least one.
        operators: ``"+"`` or ``"-"`` between adjacent operands; one fewer than the operands.
    """

    operands: tuple[int, ...]
    operators: tuple[str, ...]

    def __str__(self) -> str:
        parts = [str(self.operands[0])]
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            parts += [operator, str(operand)]
        return " ".join(parts)

    def partial_results(self) -> tuple[int, ...]:
        """Return the value after each operator, in order; the last one is the value of the expression."""
        value, values = self.operands[0], []
        for operator, operand in zip(self.operators, self.operands[1:], strict=True):
            value = value + operand if operator == "+" else value - operand
            values.append(value)
        return tuple(values)

    @property
    def value(self) -> int:
        return (self.operands[0], *self.partial_results())[-1]

    def steps(self, *, results: bool = True) -> str:
        """Return the worked rationale, e.g. ``6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6``.

        With ``results=False`` the right-hand sides are left for a calculator to fill in:
        ``6 - 0 =, 6 - 4 =, 2 - 8 =``.
        """
        left, steps = self.operands[0], []
        partial = self.partial_results()
        rows = zip(self.operators, self.operands[1:], partial, strict=True)
        for operator, operand, result in rows:
            steps.append(f"{left} {operator} {operand} =" + (f" {result}" if results else ""))
            left = result
        return ", ".join(steps)


def is_held_out(expression: Expression) -> bool:
    """Return whether the expression is reserved for testing: in neither the corpus nor the training set.

    The rule is a checksum of the text, so it is the same on every machine and for every seed.
    """
    return zlib.crc32(str(expression).encode("ascii")) % HELD_OUT_MODULUS == 0


def draw_expression(
    rng: random.Random, n_operands: int, *, held_out: bool | None = None
) -> Expression:
    """Draw uniformly among expressions of ``n_operands`` one-digit operands.

    Args:
        n_operands: at least 2.
        held_out: ``True`` draws test expressions only, ``False`` all others, ``None`` any expression.
    """
    while True:
        expression = Expression(
            tuple(rng.randrange(10) for _ in range(n_operands)),
            tuple(rng.choice("+-") for _ in range(n_operands - 1)),
        )
        if held_out is None or is_held_out(expression) == held_out:
            return expression


def question(expression: Expression) -> str:
    """Return the prompt of the arithmetic task, as in the paper."""
    return f"Question: {expression} = ? Answer:"
