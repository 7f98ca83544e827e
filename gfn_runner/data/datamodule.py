"""Lightning data module that provides the conditions of training and evaluation batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import TaskData, limited
from gfn_runner.data.trajectories import Batch
from gfn_runner.distributed.ranks import keys_of_rank, rank, world
from gfn_runner.runtime.seeds import rng_for


def own_conditions(conditions: Sequence[Condition]) -> list[Condition]:
    """Return the training conditions of this rank; if there are fewer than ranks, every rank gets all."""
    drawn = [c.key for c in conditions if c.weight > 0]
    own = set(drawn if len(drawn) < world() else keys_of_rank(drawn))
    own |= set(keys_of_rank([c.key for c in conditions if c.weight == 0]))
    return [condition for condition in conditions if condition.key in own]


class TrainBatches(IterableDataset):
    """An infinite stream of training batches; batch ``i`` depends only on the seed, ``i`` and the conditions.

    Conditions are drawn in proportion to their weight, without replacement within a batch. With n ranks,
    rank r yields batches r, n + r, 2 n + r, … of its own conditions.
    """

    def __init__(self, conditions: Sequence[Condition], size: int, seed: int, first: int = 0):
        self.size, self.seed, self.first = size, seed, first
        self.conditions = [c for c in own_conditions(conditions) if c.weight > 0]

    def batch(self, index: int) -> Batch:
        """Return batch number ``index``."""
        rng = rng_for("batch", self.seed, index)
        # Exponential keys give a weighted draw without replacement (Efraimidis & Spirakis 2006).
        keyed = sorted(self.conditions, key=lambda c: rng.expovariate(1.0) / c.weight)
        return Batch(keyed[: self.size], index=index)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches forever, starting with those of step ``first``."""
        index = self.first * world() + rank()
        while True:
            yield self.batch(index)
            index += world()


class ConditionData(L.LightningDataModule):
    """Training batches and evaluation sets of a task.

    Args:
        batch_size: conditions per training batch.
        n_during, n_final: conditions per evaluation set during training and after it; ``None`` for all.
        evaluation_batch_size: conditions per evaluation batch, on each rank.

    Attributes:
        final: whether evaluation uses the final sets rather than the smaller ones used during training.
    """

    def __init__(
        self,
        data: TaskData,
        *,
        batch_size: int,
        seed: int,
        n_during: int | None = None,
        n_final: int | None = None,
        evaluation_batch_size: int = 25,
    ) -> None:
        super().__init__()
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.n_during, self.n_final = n_during, n_final
        self.evaluation_batch_size = evaluation_batch_size
        self.final = False

    def train_dataloader(self) -> DataLoader:
        # A resumed run continues with the first batch that it has not seen.
        assert self.trainer is not None
        done = self.trainer.global_step * self.trainer.accumulate_grad_batches
        stream = TrainBatches(self.data.train, self.batch_size, self.seed, first=done)
        return DataLoader(stream, batch_size=None, num_workers=0)

    def evaluation_conditions(self) -> list[Condition]:
        """Return the conditions of the next evaluation."""
        limit = self.n_final if self.final else self.n_during
        return limited(self.data.evaluation, limit)

    def val_dataloader(self) -> DataLoader:
        # Every rank gets all batches; each batch is split across ranks when samples are drawn.
        conditions, size = self.evaluation_conditions(), self.evaluation_batch_size * world()
        batches = [
            Batch(conditions[start : start + size], index=start // size)
            for start in range(0, len(conditions), size)
        ]
        return DataLoader(batches, batch_size=None, num_workers=0)  # type: ignore[arg-type]  # a list

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Return the batch unchanged: conditions are text, and tensors are created on the model's device."""
        return batch
