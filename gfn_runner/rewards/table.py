"""A posterior given as a table of strings and their probabilities; needs no language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gfn_runner.data.conditions import Condition

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel

# A table is encoded once for a model; conditions of one name may have different tables.
_Ids = dict[tuple[int, ...], float]
_IDS: WeakKeyDictionary[LanguageModel, dict[str, tuple[Mapping[str, float], _Ids]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class TableFactor:
    """log c(z) = log probability of z in the condition's fact ``table``, else a floor.

    A value is one string of tokens, the one that the tokenizer writes its text with: other
    spellings of the same text are no values, or the table would count them twice.

    The floor is −penalty − n log V for n tokens out of V: finite, so that φ is (see ``Constraint``),
    and summable. There are V^n strings of n tokens, so those of one length have the mass
    exp(−penalty) in total. Under a constant floor they would outweigh the table from some length on.

    Attributes:
        penalty: nats, above 0.
    """

    penalty: float

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        floor = -self.penalty - len(prefix) * math.log(lm.vocab_size)
        return self._log_probability(lm, condition).get(tuple(prefix), floor)

    def satisfied(self, condition: Condition, text: str) -> bool:
        return text in condition.facts["table"]

    def _log_probability(
        self, lm: LanguageModel, condition: Condition
    ) -> dict[tuple[int, ...], float]:
        known = _IDS.setdefault(lm, {})
        table: Mapping[str, float] = condition.facts["table"]
        if condition.key not in known or known[condition.key][0] is not table:
            ids = {lm.encode(text): value for text, value in table.items()}
            known[condition.key] = (table, ids)
        return known[condition.key][1]
