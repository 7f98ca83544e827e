"""Frozen weights shared out among ranks (FSDP2), and forwards in step, as all ranks gather them at once.

Each rank keeps a part of every frozen weight and gathers a block's weights while it computes with them.
The adapter is small and whole on every rank, trained as under DDP: checkpoint, clipping and the saved
adapter are the same as without.
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
    """Share out the frozen weights; every rank has to call it.

    Args:
        lm: with its adapter; the weights of all ranks are the same, on any device.
        device: of this rank, where its part is kept and computed with.
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
    """The layers of a transformer: the longest list of modules of one class."""
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])


def ignore_sharded_parameters(module: nn.Module) -> None:
    """Keep DDP, which will wrap ``module``, from copying what is shared out within it."""
    names = [name for name, p in module.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


class Lockstep:
    """Within it ranks may run different numbers of forwards without gradients.

    Who has a forward to run says so, and all run one; who has none left runs empty ones until nobody has.
    Otherwise a rank whose strings have ended would leave the others waiting for its part of the weights.
    """

    def __init__(self, lm: LanguageModel):
        self.lm, self._depth = lm, 0

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if self._depth or any(raised):
            return  # a rank that has failed ends, and the run with it
        while any(all_gather(False)):
            self.lm.empty_forward()

    def announce(self) -> None:
        """A forward follows."""
        if self._depth and not torch.is_grad_enabled():
            all_gather(True)
