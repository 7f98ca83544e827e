"""Sharding of frozen weights (FSDP2), and forwards in lockstep, since all ranks gather them together.

Each rank keeps a shard of every frozen weight and gathers a block's weights while it computes with them.
The adapter is small and replicated on every rank, trained as under DDP: checkpoint, gradient clipping and
the saved adapter are the same as without sharding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gfn_runner.distributed.ranks import all_gather, world
from gfn_runner.lm.policy import LanguageModel


def shard(lm: LanguageModel, device: torch.device) -> None:
    """Shard the frozen weights; every rank must call this.

    Args:
        lm: the model with its adapter; all ranks must hold the same weights, on any device.
        device: device of this rank, which keeps its shard and computes.
    """
    mesh = init_device_mesh(device.type, (world(),))
    adapter = {p for p in lm.model.parameters() if p.requires_grad}
    for block in blocks(lm.model):
        own = {p for p in block.parameters() if p.requires_grad}
        fully_shard(block, mesh=mesh, ignored_params=own)
    fully_shard(lm.model, mesh=mesh, reshard_after_forward=True, ignored_params=adapter)
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    lm.lockstep = Lockstep(lm)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformer: the longest ``ModuleList`` with modules of one class."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def ignore_sharded_parameters(module: nn.Module) -> None:
    """Make DDP, which will wrap ``module``, ignore the sharded parameters in it."""
    names = [name for name, p in module.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


class Lockstep:
    """Context in which ranks may run different numbers of forwards without gradients.

    A rank announces each forward, and all ranks run one; a rank that is done runs empty ones until all are.
    Otherwise a rank whose strings have ended would leave the others waiting for its shard of the weights.
    """

    def __init__(self, lm: LanguageModel):
        self.lm, self._depth = lm, 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if self._depth or any(raised):
            return  # a rank that failed ends, and the run with it
        while any(all_gather(False)):
            self.lm.empty_forward()

    def announce(self) -> None:
        """Announce that a forward follows."""
        if self._depth and not torch.is_grad_enabled():
            all_gather(True)
