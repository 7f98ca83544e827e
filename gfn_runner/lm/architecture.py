"""Model configs: supported architectures, the text part, disabled dropout, invalid padding tokens."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

from gfn_runner.errors import Problem

CAUSAL = (
    "a decoder-only language model whose layers are attention, e.g. Llama, Qwen2, Mistral or GPT-2"
)
# Layers whose cache is a state or a summary of all earlier tokens, by their layer type in transformers.
_STATE = re.compile("linear|mamba|conv|hybrid|recurrent|compressed")


def text_config(config: Any) -> Any:
    """Return the text part of a config: the config itself, except for multimodal models."""
    return config.get_text_config(decoder=True)


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a config and its sub-configs to 0."""
    for part in _parts(config):
        for name, value in vars(part).items():
            if ("drop" in name or name.endswith("pdrop")) and isinstance(value, float):
                setattr(part, name, 0.0)
    return config


def without_missing_pad(config: Any) -> Any:
    """Unset a padding token that has no embedding, with which the model could not be built.

    This package pads rows with token 0 and masks padding.
    """
    for part in _parts(config):
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
            try:
                part.pad_token_id = None
            except Exception:  # this config's own validation requires a token
                part.pad_token_id = 0
    return config


def _parts(config: Any) -> Iterator[Any]:
    from transformers import PretrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def causal_auto_class(config: Any) -> Any:
    """Return the auto class that loads this model for text: causal LM, else image-text-to-text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal = type(config) in AutoModelForCausalLM._model_mapping
    multimodal = type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if multimodal and not causal else AutoModelForCausalLM


def kind_problems(config: Any, name: str, key: str) -> Iterator[Problem]:
    """Yield a problem if the config is not that of a causal language model with a key-value cache."""
    reason = _no_causal_lm(config) or _no_cache(config)
    if reason is not None:
        yield Problem(key, f"{name} ({config.model_type}) is {reason}", CAUSAL)


def _no_causal_lm(config: Any) -> str | None:
    from transformers import AutoModelForMaskedLM

    if config.is_encoder_decoder or text_config(config).is_encoder_decoder:
        return (
            "an encoder–decoder model: an encoder reads the prompt, so a string cannot be scored as "
            "the prompt's continuation"
        )
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    if masked and not getattr(config, "is_decoder", False):
        return (
            "an encoder, which sees the tokens on both sides and has no probability of a next token"
        )
    if type(config) not in causal_auto_class(config)._model_mapping:
        return "not a language model: transformers has no class for it that predicts a next token"
    if getattr(text_config(config), "use_bidirectional_attention", None) in (True, "all"):
        return "a model with bidirectional attention, which has no probability of a next token"
    return None


def cache_argument(forward: Callable[..., Any]) -> str | None:
    """Return the name of the cache in a forward's arguments and output: ``cache`` since transformers 5.24."""
    parameters = inspect.signature(forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in parameters), None)


def _no_cache(config: Any) -> str | None:
    kind = causal_auto_class(config)._model_mapping[type(config)]
    layers = getattr(text_config(config), "layer_types", None)
    # A model of a hybrid class may have attention layers only.
    state = sorted({layer for layer in layers or () if _STATE.search(layer)})
    if state or (not layers and getattr(kind, "_is_stateful", False)):
        with_layers = f" (layers of type {', '.join(state)})" if state else ""
        return (
            f"a recurrent or hybrid model{with_layers}: its layers keep a state of all earlier tokens, "
            "which cannot leave out padding or be scored at several ends at once"
        )
    if cache_argument(kind.forward) is None:
        return "a model without a cache of keys and values, which sampling and scoring start from"
    return None


def outside_the_language_model(model: Any) -> str | None:
    """Return a regex for the names of modules outside the text decoder and the output layer.

    Return ``None`` for a text-only model.
    """
    if text_config(model.config) is model.config:
        return None
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    named = {name: module for name, module in model.named_modules() if name}
    path = next((name for name, module in named.items() if module is decoder), None)
    others = [name for name in named if path and not _within(name, path)]
    if path is None or all(_within(path, name) or named[name] is head for name in others):
        return None
    output = next((name for name, module in named.items() if module is head), path)
    return rf"(?!(?:{re.escape(path)}|{re.escape(output)})(?:\.|$)).*"


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")
