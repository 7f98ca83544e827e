"""Diversity of sampled texts: n-grams, self-BLEU and embeddings.

All three are of one set of texts: the samples of one condition. Average them over conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gfn_runner.metrics.overlap import bleu, words

if TYPE_CHECKING:
    from gfn_runner.lm.encoder import Encoder


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of the texts together, in 0..1 (Li et al. 2016).

    It falls with the number and the length of texts, so compare only equally many. 0 where no text
    has ``n`` words.

    Args:
        texts: at least two.
        n: words of an n-gram, from 1.

    Raises:
        ValueError: at fewer than two texts or ``n`` below 1.
    """
    from nltk.util import ngrams

    _need_two(texts)
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    found = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(found)) / len(found) if found else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text against all the others, in 0..1; low is diverse (Zhu et al. 2018).

    BLEU as in :func:`~gfn_runner.metrics.overlap.bleu`. A text of fewer than four words stays below 1
    even beside its own copy, and one without words scores 0.

    Args:
        texts: at least two; each is compared with each.

    Raises:
        ValueError: at fewer than two texts.
    """
    _need_two(texts)
    return bleu(texts, [[*texts[:row], *texts[row + 1 :]] for row in range(len(texts))])


def embedding_diversity(texts: Sequence[str], encoder: Encoder) -> float:
    """1 − mean cosine over all pairs of different samples (Hu et al. 2024, section 4.1).

    A sample is never paired with itself; two equal samples are a pair, of cosine 1. Vectors of
    length 0 are alike among themselves and orthogonal to all others.

    Args:
        texts: at least two.
        encoder: of the vectors; numbers of different encoders are not comparable.

    Raises:
        ValueError: at fewer than two texts, or a vector that is not finite.
    """
    _need_two(texts)
    vector_NE = encoder.encode(texts).double().cpu()
    if not vector_NE.isfinite().all():
        raise ValueError(f"encoder {encoder.name} gave a vector that is not finite")
    length_N1 = vector_NE.norm(dim=1, keepdim=True)
    is_zero_N1 = length_N1 == 0
    unit_NE = torch.cat([vector_NE / length_N1.masked_fill(is_zero_N1, 1.0), is_zero_N1], dim=1)
    n = len(texts)
    # Σ_{i≠j} u_i·u_j = |Σ u|² − Σ |u|²: no N × N matrix.
    pairs = unit_NE.sum(dim=0).square().sum() - unit_NE.square().sum()
    # Equal vectors differ from diversity 0 by rounding, on either side.
    return max(0.0, 1.0 - float(pairs) / (n * (n - 1)))


def _need_two(texts: Sequence[object]) -> None:
    if len(texts) < 2:
        raise ValueError(f"diversity is of at least two texts, not {len(texts)}")
