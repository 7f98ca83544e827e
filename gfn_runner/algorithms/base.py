"""What a training step computes, as an object that every experiment can be given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Batch
from gfn_runner.errors import Problem

if TYPE_CHECKING:
    from gfn_runner.tasks.base import GFlowNetModule


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SamplingSettings:
    """Trajectories of a training step: the config group ``sampling``.

    Attributes:
        n_conditions: per batch.
        n_samples: trajectories per condition.
        exploration_probability: of a fresh batch, to be sampled at a temperature drawn uniformly from
            ``min_temperature`` to ``max_temperature``; the others are on-policy.
        sft_share: of the optimizer steps, the first ones, that sample nothing: they are supervised
            fine-tuning on the task's known strings (``Task.targets``), one a condition.
    """

    n_conditions: Annotated[int, Field(ge=1)] = 8
    n_samples: Annotated[int, Field(ge=1)] = 16
    exploration_probability: Annotated[float, Field(ge=0, le=1)] = 0.667
    min_temperature: Annotated[float, Field(gt=0)] = 0.5
    max_temperature: Annotated[float, Field(gt=0)] = 2.0
    sft_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def problems(self) -> Iterator[Problem]:
        """What is impossible in combination."""
        if self.min_temperature > self.max_temperature:
            yield Problem(
                "sampling.min_temperature",
                f"given {self.min_temperature}, above sampling.max_temperature = "
                f"{self.max_temperature}",
                f"above 0, at most {self.max_temperature}",
            )


class Algorithm(nn.Module):
    """A training algorithm. Its parameters are trained and checkpointed beside the adapter.

    Attributes:
        label: its name in tables.
        needs_pairs_between: whether a condition with a single trajectory gives no loss.
        needs_prefixes: whether rewards of a string's prefixes take part.
        uses_replay: whether it can train on batches from the replay buffer.
    """

    label: ClassVar[str]
    needs_pairs_between: bool = False
    needs_prefixes: bool = False
    uses_replay: bool = False

    def problems(self) -> Iterator[Problem]:
        """What is impossible in its settings alone."""
        yield from ()

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        """What of a task it cannot train on."""
        yield from ()

    def trained_on(self, task: Task, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """The training conditions that it can learn from."""
        return conditions

    def setup(self, module: GFlowNetModule) -> None:
        """Make parameters that depend on the model or on the conditions."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of its own parameters."""
        return []

    def on_fit_start(self, module: GFlowNetModule) -> None:
        """Before the first batch of every ``trainer.fit``."""

    def training_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        """Compute the loss of a batch.

        Returns:
            ``loss``; ``output``, a detached :class:`~gfn_runner.data.trajectories.StepOutput`; and, if
            there are more scalars to log, ``measures``.
        """
        raise NotImplementedError

    def counted_BS(self, terminable_BS: Tensor, length_B: Tensor) -> Tensor:
        """States whose log-reward it reads. Shape (B, S)."""
        return terminable_BS

    def before_optimizer_step(self, module: GFlowNetModule) -> None:
        """Between the backward pass and the optimizer."""

    def after_optimizer_step(self, module: GFlowNetModule) -> None:
        """After the optimizer."""

    def validation_step(self, module: GFlowNetModule, batch: Batch) -> list[ConditionSamples]:
        """What the policy answers for an evaluation batch."""
        return module.draw_answers(batch)

    def missing_value_is_finite(self, name: str, parameter: Tensor) -> bool:
        """Whether NaN in one of its parameters has a meaning."""
        return False

    def on_save_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        """Add what is no parameter to a checkpoint; plain containers and tensors only."""

    def on_load_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        """Take back what :meth:`on_save_checkpoint` added."""
