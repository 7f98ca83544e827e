"""The Lightning data module: the conditions of each training batch and each evaluation."""

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
    """The training conditions of this rank; all that may be drawn if there are fewer than ranks."""
    drawn = [c.key for c in conditions if c.weight > 0]
    own = set(drawn if len(drawn) < world() else keys_of_rank(drawn))
    own |= set(keys_of_rank([c.key for c in conditions if c.weight == 0]))
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


class ConditionData(L.LightningDataModule):
    """Training batches and evaluation sets of a task.

    Args:
        batch_size: conditions of a training batch.
        n_during, n_final: conditions of each evaluation set during training and at the end; ``None`` for
            all.
        evaluation_batch_size: conditions evaluated at once, on each rank.

    Attributes:
        final: whether evaluation takes the final sets or the smaller ones used during training.
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
        # A resumed run goes on with the batch it had not yet seen.
        assert self.trainer is not None
        done = self.trainer.global_step * self.trainer.accumulate_grad_batches
        stream = TrainBatches(self.data.train, self.batch_size, self.seed, first=done)
        return DataLoader(stream, batch_size=None, num_workers=0)

    def evaluation_conditions(self) -> list[Condition]:
        """The conditions of the next evaluation."""
        limit = self.n_final if self.final else self.n_during
        return limited(self.data.evaluation, limit)

    def val_dataloader(self) -> DataLoader:
        # Every rank gets all batches; a batch is shared out when it is drawn.
        conditions, size = self.evaluation_conditions(), self.evaluation_batch_size * world()
        batches = [
            Batch(conditions[start : start + size], index=start // size)
            for start in range(0, len(conditions), size)
        ]
        return DataLoader(batches, batch_size=None, num_workers=0)  # type: ignore[arg-type]  # a list

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, _: int) -> Batch:
        """Conditions are text; what the steps make of them is on the model's device already."""
        return batch
