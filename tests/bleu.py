"""BLEU once more, written out."""

from __future__ import annotations

import math
from collections import Counter


def bleu_by_hand(text: list[str], others: list[list[str]]) -> float:
    """BLEU-4 with 0.1 matches instead of none, as smoothing method 1 has it."""
    logs = []
    for n in range(1, 5):
        found = Counter(zip(*(text[i:] for i in range(n)), strict=False))
        known = [Counter(zip(*(o[i:] for i in range(n)), strict=False)) for o in others]
        matches = sum(min(c, max(k[gram] for k in known)) for gram, c in found.items())
        logs.append(math.log((matches or 0.1) / max(1, sum(found.values()))))
    # The length nearest to the text's; of two the shorter.
    nearest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
    penalty = 0.0 if len(text) > nearest else 1 - nearest / len(text)
    return math.exp(penalty + sum(logs) / 4)
