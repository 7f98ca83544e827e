"""Diversity of sampled texts: n-grams, self-BLEU and embeddings.

All three measure one set of texts: the samples of one condition. Average them over conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from gfn_runner.metrics.overlap import bleu, words

if TYPE_CHECKING:
    from gfn_runner.lm.encoder import Encoder


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the number of distinct n-grams over that of all n-grams, in 0..1 (Li et al. 2016).

    It decreases with the number and the length of texts, so compare only equal numbers of texts. It is 0
    if no text has ``n`` words.

    Args:
        texts: at least two.
        n: words per n-gram, at least 1.

    Raises:
        ValueError: for fewer than two texts or ``n`` below 1.
    """
    from nltk.util import ngrams

    _need_two(texts)
    if n < 1:
        raise ValueError(f"n-grams have at least one word, not {n}")
    found = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(found)) / len(found) if found else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others, in 0..1; low is diverse (Zhu et al. 2018).

    BLEU is :func:`~gfn_runner.metrics.overlap.bleu`. A text of fewer than four words scores below 1
    even against its own copy, and one without words scores 0.

    Args:
        texts: at least two; each is compared with all others.

    Raises:
        ValueError: for fewer than two texts.
    """
    _need_two(texts)
    return bleu(texts, [[*texts[:row], *texts[row + 1 :]] for row in range(len(texts))])


def embedding_diversity(texts: Sequence[str], encoder: Encoder) -> float:
    """Return 1 − mean cosine similarity over all pairs of samples (Hu et al. 2024, section 4.1).

    A sample is never paired with itself; two equal samples form a pair with cosine 1. Zero vectors have
    cosine 1 with each other and are orthogonal to all others.

    Args:
        texts: at least two.
        encoder: text encoder; numbers from different encoders are not comparable.

    Raises:
        ValueError: for fewer than two texts, or if a vector is not finite.
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
    # For equal vectors, rounding may give a diversity slightly below 0.
    return max(0.0, 1.0 - float(pairs) / (n * (n - 1)))


def _need_two(texts: Sequence[object]) -> None:
    if len(texts) < 2:
        raise ValueError(f"diversity is of at least two texts, not {len(texts)}")
