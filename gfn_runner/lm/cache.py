"""Caches of keys and values: rows of one, and spare room to grow into without copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with spare room behind them.

    Transformers' own layer concatenates, which copies all keys and values of a batch for each token.
    """

    room = 32  # tokens

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._key_room = self._value_room = torch.empty(0)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As the base class, without its copy."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None  # initialised
        used = self.get_seq_length()
        needed = used + key_states.shape[-2]
        # A selection of rows makes new tensors: the room behind the old ones is not theirs.
        moved = not used or self.keys.data_ptr() != self._key_room.data_ptr()
        if moved or needed > self._key_room.shape[-2]:
            self._key_room = self._with_room(self.keys, key_states, used, needed)
            self._value_room = self._with_room(self.values, value_states, used, needed)
        self._key_room[..., used:needed, :] = key_states
        self._value_room[..., used:needed, :] = value_states
        self.keys = self._key_room[..., :needed, :]
        self.values = self._value_room[..., :needed, :]
        return self.keys, self.values

    def _with_room(self, old: Tensor, new: Tensor, used: int, needed: int) -> Tensor:
        shape = (*new.shape[:-2], needed + self.room, new.shape[-1])
        room = new.new_empty(shape)
        if used:
            room[..., :used, :] = old
        return room


def make_roomy(cache: Any) -> None:
    """Give every layer that grows by concatenation spare room; leaves other kinds as they are."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            roomy = RoomyLayer()
            roomy.__dict__.update(layer.__dict__)
            cache.layers[place] = roomy


def select_rows(cache: Any, index_B: Tensor) -> None:
    """Keep the rows ``index_B`` of a cache, with repetition; changes it in place, gradients flow.

    transformers indexes by a tensor. Its backward pass adds the gradients of a repeated row in an order
    that threads decide, so that two equal runs would differ by rounding.
    """
    for layer in cache.layers:
        if type(layer).batch_select_indices is not DynamicLayer.batch_select_indices:
            layer.batch_select_indices(index_B)
        elif layer.get_seq_length() > 0:
            layer.keys = layer.keys.index_select(0, index_B)
            layer.values = layer.values.index_select(0, index_B)
