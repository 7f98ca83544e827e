"""Key-value caches: selecting rows, and spare capacity so that they grow without copies."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Logits of this token and the next, masked and scaled copies in fp32; their cumulative sums in fp64.
_BYTES_PER_LOGIT = 24


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, with spare capacity.

    The layer of transformers concatenates, which copies all keys and values of a batch for each token.
    """

    reserve = 32  # tokens

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._key_buffer = self._value_buffer = torch.empty(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values like the base class, but without copying the earlier ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # initialised
        used = self.get_seq_length()
        needed = used + key_states.shape[-2]
        # Selecting rows creates new tensors, which are no longer views of the old buffer.
        moved = not used or self.keys.data_ptr() != self._key_buffer.data_ptr()
        if moved or needed > self._key_buffer.shape[-2]:
            self._key_buffer = self._enlarged(self.keys, key_states, used, needed)
            self._value_buffer = self._enlarged(self.values, value_states, used, needed)
        self._key_buffer[..., used:needed, :] = key_states
        self._value_buffer[..., used:needed, :] = value_states
        self.keys = self._key_buffer[..., :needed, :]
        self.values = self._value_buffer[..., :needed, :]
        return self.keys, self.values

    def _enlarged(self, old: Tensor, new: Tensor, used: int, needed: int) -> Tensor:
        shape = (*new.shape[:-2], needed + self.reserve, new.shape[-1])
        buffer = new.new_empty(shape)
        if used:
            buffer[..., :used, :] = old
        return buffer


def reserve_capacity(cache: Any) -> None:
    """Give every layer that grows by concatenation spare capacity; leave other layers unchanged."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            growing = GrowingLayer()
            growing.__dict__.update(layer.__dict__)
            cache.layers[place] = growing


def select_rows(cache: Any, index_B: Tensor) -> None:
    """Keep the rows ``index_B`` of a cache, in place and differentiably; rows may be repeated.

    transformers indexes by a tensor. Its backward pass adds the gradients of a repeated row in an order
    that depends on thread timing, so two identical runs would differ by rounding.
    """
    for layer in cache.layers:
        if type(layer).batch_select_indices is not DynamicLayer.batch_select_indices:
            layer.batch_select_indices(index_B)
        elif layer.get_seq_length() > 0:
            layer.keys = layer.keys.index_select(0, index_B)
            layer.values = layer.values.index_select(0, index_B)


@dataclass
class PromptCache:
    """Keys and values of left-padded prompts: N rows, P prompt tokens.

    Attributes:
        cache: transformers cache, which a forward pass changes in place.
        mask_NP: ``True`` at prompt tokens, ``False`` at padding.
        last_logits_NV: next-token logits after each prompt.
    """

    cache: Any
    mask_NP: Tensor
    last_logits_NV: Tensor

    @property
    def length_N(self) -> Tensor:
        return self.mask_NP.sum(dim=1)

    def select(self, index_B: Tensor) -> PromptCache:
        """Return the rows ``index_B`` (repeats allowed), differentiably; this cache is unchanged."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        select_rows(cache, index_B)
        last_logits_BV = self.last_logits_NV.index_select(0, index_B)
        return PromptCache(cache, self.mask_NP[index_B], last_logits_BV)


def row_bytes(model: Any, vocab_size: int, tokens: int) -> int:
    """Return the bytes that sampling one string takes: its logits, and keys and values of all its tokens.

    Keys and values count twice: rows that have ended are dropped by copying the others.

    Args:
        vocab_size: number of logits per token.
        tokens: number of tokens of the prompt and the longest string together.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached = 2 * config.num_hidden_layers * kept * width * model.dtype.itemsize
    return _BYTES_PER_LOGIT * vocab_size + 2 * tokens * cached
