"""A posterior given as a table of strings and their probabilities; needs no language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from gfn_runner.lm.policy import LanguageModel
from gfn_runner.types import Condition

# A table is encoded once for a model; conditions of one name may have different tables.
_Ids = dict[tuple[int, ...], float]
_IDS: WeakKeyDictionary[LanguageModel, dict[str, tuple[Mapping[str, float], _Ids]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class TableFactor:
    """log c(z) = log probability of z in the condition's fact ``table``, else ``floor``.

    A value is one string of tokens, the one that the tokenizer writes its text with: other
    spellings of the same text are no values, or the table would count them twice.

    Attributes:
        floor: log-reward of every other string, nats. Finite, so that φ is (see ``Constraint``).
    """

    floor: float

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        return self._log_probability(lm, condition).get(tuple(prefix), self.floor)

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
