"""Counting, logging and limiting of optimizer steps skipped because loss or gradient is not finite."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable

from gfn_runner.distributed.ranks import is_rank_zero
from gfn_runner.errors import UserError

logger = logging.getLogger(__name__)
_MOST_NAMED = 5


class SkippedSteps:
    """Counter of skipped steps that ends the run after too many in a row.

    Args:
        most_in_a_row: number of skipped steps in a row that ends the run; 0 never ends it.
        fix: what the user can do, for messages.

    Attributes:
        total: number of steps skipped so far.
        in_a_row: the latest skipped steps in a row, each as ``step <number>: <reason>``.
    """

    def __init__(self, most_in_a_row: int, fix: str) -> None:
        self.most_in_a_row, self.fix = most_in_a_row, fix
        self.total = 0
        self.in_a_row: deque[str] = deque(maxlen=max(1, most_in_a_row))

    def passes(self, step: int, reason: str | None, part: str = "") -> bool:
        """Return whether a step may be made; count and log it as skipped if not.

        Args:
            step: number of the step, counted from 1.
            reason: what is not finite; ``None`` if everything is finite.
            part: part of the run that the step belongs to, as a prefix of messages.

        Raises:
            UserError: once ``most_in_a_row`` steps in a row are skipped.
        """
        if reason is None:
            self.in_a_row.clear()
            return True
        self.total += 1
        self.in_a_row.append(f"step {step}: {reason}")
        place = f"{part}optimizer step {step}"
        if is_rank_zero():
            logger.warning("%s is skipped: %s", place, reason)
        most = self.most_in_a_row
        if most and len(self.in_a_row) == most:
            shown = ". ".join(list(self.in_a_row)[-_MOST_NAMED:])
            raise UserError.one(
                place,
                reason if most == 1 else f"{most} steps in a row are not finite. {shown}",
                "finite losses and gradients; fewer in a row than callbacks.non_finite_steps.max_in_a_row",
                self.fix,
            )
        return False


def named(keys: Iterable[str]) -> str:
    """Format the first few keys of conditions for a message."""
    different = list(dict.fromkeys(keys))
    more = " …" if len(different) > _MOST_NAMED else ""
    return ", ".join(map(repr, different[:_MOST_NAMED])) + more
