"""Length limits of a model's config: context, attention window, and where probabilities change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gfn_runner.lm.architecture import text_config

# Config fields with the most keys that a layer attends to: the latest keys or those of a chunk.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "sliding_windows",
    "attention_chunk_size",
    "attention_window_size",
    "window_size",
    "local_attention",
)


def context_length(config: Any) -> int | None:
    """Return the maximum sequence length in tokens, or ``None`` if the config states none."""
    text = text_config(config)
    stated = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return min((length for length in (stated, *same_up_to(config)) if length), default=None)


def attention_window(config: Any) -> int | None:
    """Return the smallest attention window of any layer, in tokens, or ``None`` if no layer has one.

    Sequences up to this length get full attention. A window that the config states but no layer uses
    counts too: this costs time, not correctness.
    """
    text = text_config(config)
    values = [number for name in _WINDOWS for number in _numbers(getattr(text, name, None))]
    return min((value for value in values if value > 0), default=None)


def counts_places(config: Any) -> bool:
    """Return whether the attention window counts indices in the input instead of position ids.

    GPT-Neo's does: its local layers add a band mask of their own, which packed branches do not fit.
    """
    return hasattr(text_config(config), "attention_layers")


def same_up_to(config: Any) -> dict[int, str]:
    """Return the lengths in tokens up to which probabilities depend only on the preceding text, and why.

    RoPE of type ``longrope`` has two sets of frequencies and selects one by the longest sequence of a
    forward pass. Sparse attention that selects ``index_topk`` keys was seen to select others in a padded
    batch. (RoPE of type ``dynamic`` changes above the context length, which no sequence may exceed.)
    """
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    found = {
        one[
            "original_max_position_embeddings"
        ]: "its RoPE (longrope) depends on the longest sequence"
        for one in (parameters, *nested)
        if one.get("rope_type") == "longrope" and one.get("original_max_position_embeddings")
    }
    if getattr(text, "index_topk", None):
        found[text.index_topk] = "its sparse attention (index_topk) depends on the padding"
    return found


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
