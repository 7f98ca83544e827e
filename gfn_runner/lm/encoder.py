"""Text encoders, selected by name: hashed word counts (offline) or a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.model_config import ENCODER_KEY, ENCODERS, WORDS, sentence_model_problems
from gfn_runner.lm.pretrained import Source, quiet_loading, resolve


class Encoder(Protocol):
    """Encoder of texts as vectors whose cosine measures similarity."""

    @property
    def name(self) -> str:
        """Name to report along with its numbers."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode at least one text as float32 vectors on the CPU. Shape (N, E)."""


class WordCounts:
    """Encoder by hashed counts of lower-cased words; needs no model and no download.

    The cosine measures word overlap, regardless of meaning and order. Its numbers are **not comparable
    with the paper's**, which come from a sentence encoder; compare them only with each other. A text
    without words is encoded as the zero vector.
    """

    name = WORDS
    # E. Among the few hundred words of an evaluation, collisions are rare.
    n_features = 2**14

    def encode(self, texts: Sequence[str]) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        # scikit-learn's default pattern would drop one-letter words and one-digit numbers.
        pattern = r"(?u)\b\w+\b"
        vectorizer: Any = HashingVectorizer(
            n_features=self.n_features, token_pattern=pattern, norm=None, alternate_sign=False
        )
        return torch.from_numpy(vectorizer.transform(list(texts)).toarray()).float()


class SentenceModel:
    """A sentence-transformers model, with the pooling that its authors specify."""

    def __init__(self, name: str, model: Any):
        self.name, self.model = name, model

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode at least one text as float32 vectors on the CPU. Shape (N, E)."""
        vectors = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu()


def load_encoder(name: str) -> Encoder:
    """Load the encoder that ``evaluation.encoder`` names.

    Args:
        name: ``words``, ``minilm`` (all-MiniLM-L6-v2 from its package), a folder or a hub id. A plain
            transformer without its own pooling is mean-pooled.

    Raises:
        UserError: if the model cannot be found or read, or needs the optional package.
    """
    if name == WORDS:
        return WordCounts()
    source = _source(name)
    from sentence_transformers import SentenceTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pad = {"pad_token_id": getattr(source.config(), "pad_token_id", None)}
    with source.explained("weights"), quiet_loading():
        model = SentenceTransformer(
            source.path, device=device, trust_remote_code=False, config_kwargs=pad
        )
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            _pad_with_a_row(model.tokenizer, module)
            break
    return SentenceModel(name, model)


def encoder_problems(name: str) -> Iterator[Problem]:
    """Yield problems with the name or files of a sentence model, without reading its weights."""
    from transformers import AutoModel

    try:
        source = _source(name)
        config, _ = source.config(), source.tokenizer()
        yield from source.weights_problems(AutoModel, config)
    except UserError as error:
        yield from error.problems


def _source(name: str) -> Source:
    problems = list(sentence_model_problems(name))
    if problems:
        raise UserError(problems)
    source = resolve(name, ENCODER_KEY, ENCODERS)
    source.require_available()
    return source


def _pad_with_a_row(tokenizer: Any, model: Any) -> None:
    """Set a padding token that has an embedding; any will do, since padding is masked."""
    rows = model.get_input_embeddings().weight.shape[0]
    for token in (tokenizer.eos_token, tokenizer.convert_ids_to_tokens(0)):
        if (tokenizer.pad_token is None or tokenizer.pad_token_id >= rows) and token is not None:
            tokenizer.pad_token = token
