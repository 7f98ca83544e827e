"""Encoders of texts, by name: hashed word counts offline, else a sentence model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gfn_runner.lm.encoder import load_sentence_model
from gfn_runner.lm.model_config import WORDS


class Encoder(Protocol):
    """Turns texts into vectors whose cosine says how alike they are."""

    @property
    def name(self) -> str:
        """What to call it beside its numbers."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of at least one text, float32, on the CPU. Shape (N, E)."""


class WordCounts:
    """Hashed counts of lower-case words; needs no model and no download.

    Its cosine is the overlap of words, blind to meaning and order. Numbers made with it are **not
    comparable with the paper's**, which come from a sentence encoder; compare them only with each
    other. A text without words is the zero vector.
    """

    name = WORDS
    # E. With the few hundred words of an evaluation, hardly two share a place.
    n_features = 2**14

    def encode(self, texts: Sequence[str]) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        # scikit-learn's own pattern would drop words of one letter, and numbers of one digit.
        pattern = r"(?u)\b\w+\b"
        vectorizer: Any = HashingVectorizer(
            n_features=self.n_features, token_pattern=pattern, norm=None, alternate_sign=False
        )
        return torch.from_numpy(vectorizer.transform(list(texts)).toarray()).float()


def load_encoder(name: str, *, device: str = "auto") -> Encoder:
    """The encoder that ``evaluation.encoder`` names.

    Args:
        name: ``words``, or a sentence model: see :func:`load_sentence_model`.
        device: of a sentence model; ``auto`` takes CUDA where there is one.

    Raises:
        UserError: if the model cannot be found or read.
    """
    return WordCounts() if name == WORDS else load_sentence_model(name, device=device)
