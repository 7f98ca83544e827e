"""The ranks of a run and their collectives; ``launch`` starts them.

All ranks hold the same policy. Each has training conditions of its own (and so a replay buffer of its
own), samples for them, and averages its gradients with the others'. A run of one process uses none of
this.
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
    """This process's rank; 0 where it is alone."""
    return _group().get_rank() if _joined() else 0


def world() -> int:
    """Number of ranks."""
    return _group().get_world_size() if _joined() else 1


def is_rank_zero() -> bool:
    """Whether this process writes the run's files and prints.

    Lightning's ``rank_zero_only`` takes the rank of any launcher, also for a run of one process.
    """
    return rank() == 0


@dataclass(frozen=True)
class Processes:
    """Number of processes of a run: ``devices`` on each of ``nodes`` machines."""

    devices: int = 1
    nodes: int = 1

    @property
    def number(self) -> int:
        return self.devices * self.nodes


def _joined() -> bool:
    # A process that is alone never loads torch for this.
    torch = sys.modules.get("torch")
    return torch is not None and _group().is_available() and _group().is_initialized()


def _group() -> Any:
    import torch.distributed

    return torch.distributed


# -- collectives -------------------------------------------------------------------------------


def all_gather(value: T) -> list[T]:
    """The value of every rank, in the order of ranks; every rank has to call it."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _group().all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The value of rank 0; every rank has to call it."""
    if world() == 1:
        return value
    values = [value]
    _group().broadcast_object_list(values, src=0)
    return values[0]


def compute_on_rank_zero(function: Callable[[], T]) -> T:
    """What a function returns on rank 0, for all ranks; every rank has to call it.

    For what is read from the run's folder: another machine may see another state of it.
    """
    return broadcast(function() if is_rank_zero() else cast(T, None))


def sum_gradients(parameters: Sequence[Any]) -> None:
    """Add up the gradients of all ranks, in place; every rank has to call it."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = parameter.new_zeros(parameter.shape)
        _group().all_reduce(parameter.grad)


def broadcast_tensors(tensors: Sequence[Any]) -> None:
    """Overwrite tensors with rank 0's, in place; every rank has to call it."""
    if world() > 1:
        for tensor in tensors:
            _group().broadcast(tensor.data, src=0)


def barrier() -> None:
    """Wait until every rank is here."""
    all_gather(None)


def share_of_rank(items: Sequence[T]) -> Sequence[T]:
    """This rank's consecutive part of items; the parts of all ranks make up the whole, in order."""
    size, rest = divmod(len(items), world())
    start = rank() * size + min(rank(), rest)
    return items[start : start + size + (rank() < rest)]


def keys_of_rank(keys: Sequence[str]) -> list[str]:
    """The keys that belong to this rank, in their order.

    Keys are dealt out in the order of a hash, so that ranks have equally many (but for one), and the same
    ones in every process and every run with as many ranks.
    """
    order = sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8")).digest())
    own = set(order[rank() :: world()])
    return [key for key in keys if key in own]
