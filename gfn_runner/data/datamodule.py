"""The data module: which conditions each training batch and each evaluation holds; no text work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import TaskData
from gfn_runner.data.trajectories import Batch
from gfn_runner.distributed.ranks import own_keys, rank, world
from gfn_runner.evaluation.draw import limited
from gfn_runner.runtime.seeds import rng_for


def own_conditions(conditions: Sequence[Condition]) -> list[Condition]:
    """The training conditions of this rank; all that may be drawn if there are fewer than ranks."""
    drawn = [c.key for c in conditions if c.weight > 0]
    own = set(drawn if len(drawn) < world() else own_keys(drawn))
    own |= set(own_keys([c.key for c in conditions if c.weight == 0]))
    return [condition for condition in conditions if condition.key in own]


class TrainBatches(IterableDataset):
    """An endless stream of batches. Batch ``i`` is a pure function of seed, ``i`` and the conditions.

    Conditions are drawn by weight, without repetition within a batch as far as there are enough. Of n
    ranks, rank r gets batches r, n + r, 2 n + r, … of its own conditions.
    """

    def __init__(self, conditions: Sequence[Condition], size: int, seed: int, first: int = 0):
        self.size, self.seed, self.first = size, seed, first
        self.conditions = [c for c in own_conditions(conditions) if c.weight > 0]

    def batch(self, index: int) -> Batch:
        """The batch of number ``index``."""
        rng = rng_for("batch", self.seed, index)
        # Exponential keys give a weighted draw without replacement (Efraimidis & Spirakis 2006).
        keyed = sorted(self.conditions, key=lambda c: rng.expovariate(1.0) / c.weight)
        return Batch(keyed[: self.size], index=index)

    def __iter__(self) -> Iterator[Batch]:
        """Endlessly, from the batches of step ``first`` on."""
        index = self.first * world() + rank()
        while True:
            yield self.batch(index)
            index += world()


class _BatchList(Dataset):
    """Batches that are made already."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> Batch:
        return self.batches[place]


class ConditionData(L.LightningDataModule):
    """Training batches and evaluation sets of a task.

    Attributes:
        data: the task's conditions.
        final: whether evaluation takes the final sets or the smaller ones used during training.
    """

    def __init__(self, data: TaskData, options: EvaluationSettings, *, batch_size: int, seed: int):
        super().__init__()
        self.data, self.options = data, options
        self.batch_size, self.seed = batch_size, seed
        self.final = False

    def train_dataloader(self) -> DataLoader:
        # A resumed run goes on with the batch it had not yet seen.
        assert self.trainer is not None
        done = self.trainer.global_step * self.trainer.accumulate_grad_batches
        stream = TrainBatches(self.data.train, self.batch_size, self.seed, first=done)
        return DataLoader(stream, batch_size=None, num_workers=0)

    def evaluation_conditions(self) -> list[Condition]:
        """The conditions of the next evaluation."""
        limit = self.options.final if self.final else self.options.during
        return limited(self.data.evaluation, limit)

    def val_dataloader(self) -> DataLoader:
        # Every rank gets all batches; a batch is shared out when it is drawn.
        conditions, size = self.evaluation_conditions(), self.options.batch * world()
        batches = [
            Batch(conditions[start : start + size], index=start // size)
            for start in range(0, len(conditions), size)
        ]
        return DataLoader(_BatchList(batches), batch_size=None, num_workers=0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Conditions are text; what the steps make of them is on the model's device already."""
        return batch
