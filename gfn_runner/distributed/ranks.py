"""Ranks of a run and collective operations; ``launch`` starts the ranks.

All ranks hold the same policy. Each rank has its own training conditions (and hence its own replay
buffer), samples for them, and averages its gradients with those of the others. A run with a single
process uses none of this.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

T = TypeVar("T")


# -- ranks -------------------------------------------------------------------------------------


def rank() -> int:
    """Return the rank of this process; 0 for a single process."""
    return _group().get_rank() if _joined() else 0


def world() -> int:
    """Return the number of ranks."""
    return _group().get_world_size() if _joined() else 1


def is_rank_zero() -> bool:
    """Return whether this process writes the run's files and prints.

    Lightning's ``rank_zero_only`` uses the rank of any launcher, even for a run of one process.
    """
    return rank() == 0


@dataclass(frozen=True)
class Processes:
    """Processes of a run: ``devices`` on each of ``nodes`` machines."""

    devices: int = 1
    nodes: int = 1

    @property
    def number(self) -> int:
        return self.devices * self.nodes


def _joined() -> bool:
    # A single process must not import torch just for this.
    torch = sys.modules.get("torch")
    return torch is not None and _group().is_available() and _group().is_initialized()


def _group() -> Any:
    import torch.distributed

    return torch.distributed


# -- collectives -------------------------------------------------------------------------------


def all_gather(value: T) -> list[T]:
    """Gather a value from every rank, in rank order. Must be called on every rank."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _group().all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return the value of rank 0. Must be called on every rank."""
    if world() == 1:
        return value
    values = [value]
    _group().broadcast_object_list(values, src=0)
    return values[0]


def compute_on_rank_zero(function: Callable[[], T]) -> T:
    """Call a function on rank 0 and broadcast its result. Must be called on every rank.

    Use this to read from the run's folder, whose state may look different on another machine.
    """
    return broadcast(function() if is_rank_zero() else cast(T, None))


def sum_gradients(parameters: Sequence[Any]) -> None:
    """Sum the gradients over all ranks, in place. Must be called on every rank."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = parameter.new_zeros(parameter.shape)
        _group().all_reduce(parameter.grad)


def broadcast_tensors(tensors: Sequence[Any]) -> None:
    """Overwrite tensors with those of rank 0, in place. Must be called on every rank."""
    if world() > 1:
        for tensor in tensors:
            _group().broadcast(tensor.data, src=0)


def barrier() -> None:
    """Wait until every rank has reached this point."""
    all_gather(None)


def share_of_rank(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's contiguous chunk of items; the chunks of all ranks, in order, are the whole."""
    size, rest = divmod(len(items), world())
    start = rank() * size + min(rank(), rest)
    return items[start : start + size + (rank() < rest)]


def keys_of_rank(keys: Sequence[str]) -> list[str]:
    """Return the keys assigned to this rank, in their original order.

    Keys are assigned round-robin in the order of a hash, so the ranks' shares differ in size by at most
    one, and are the same in every process and every run with this number of ranks.
    """
    order = sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8")).digest())
    own = set(order[rank() :: world()])
    return [key for key in keys if key in own]
