"""A penalty for tokens that a string should not hold, such as line breaks, quotes and addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from gfn_runner.data.conditions import Condition
from gfn_runner.lm.encoding import ids_holding

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel


@dataclass(frozen=True)
class IllegalTokens:
    """log c(z) = −penalty × number of tokens whose text holds one of ``texts``.

    Hu et al. 2024, section 4.1, take 50 nats. Tokens that are never to be written are better taken
    out of the vocabulary (``Task.forbidden_texts``): then no mass has to be moved away from them.

    Attributes:
        texts: none of them empty.
        penalty: nats, above 0.
    """

    texts: tuple[str, ...]
    penalty: float = 50.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        illegal = illegal_ids(lm.tokenizer, self.texts)
        return -self.penalty * sum(token in illegal for token in prefix)

    def satisfied(self, condition: Condition, text: str) -> bool:
        return not any(illegal in text for illegal in self.texts)


@lru_cache(maxsize=16)  # it goes through the whole vocabulary
def illegal_ids(tokenizer: Any, texts: tuple[str, ...]) -> frozenset[int]:
    """Tokens whose text holds one of ``texts``."""
    return ids_holding(tokenizer, texts)
