"""Base class of training algorithms, which compute a training step, and settings of sampling."""

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
    """Sampling of a training step's trajectories: the config group ``sampling``.

    Attributes:
        n_conditions: conditions per batch.
        n_samples: trajectories per condition.
        exploration_probability: probability that a fresh batch is sampled at a temperature drawn uniformly
            from ``min_temperature`` to ``max_temperature``; the others are on-policy.
        sft_share: share of the optimizer steps, the first ones, that sample nothing: they are supervised
            fine-tuning on the task's known strings (``Task.targets``), one per condition.
    """

    n_conditions: Annotated[int, Field(ge=1)] = 8
    n_samples: Annotated[int, Field(ge=1)] = 16
    exploration_probability: Annotated[float, Field(ge=0, le=1)] = 0.667
    min_temperature: Annotated[float, Field(gt=0)] = 0.5
    max_temperature: Annotated[float, Field(gt=0)] = 2.0
    sft_share: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def problems(self) -> Iterator[Problem]:
        """Yield impossible combinations of settings."""
        if self.min_temperature > self.max_temperature:
            yield Problem(
                "sampling.min_temperature",
                f"given {self.min_temperature}, above sampling.max_temperature = "
                f"{self.max_temperature}",
                f"above 0, at most {self.max_temperature}",
            )


class Algorithm(nn.Module):
    """Base class of training algorithms. Its parameters are trained and checkpointed with the adapter.

    Attributes:
        label: name of the algorithm in tables.
        needs_pairs_between: whether a condition with a single trajectory gives no loss.
        needs_prefixes: whether it uses rewards of a string's prefixes.
        uses_replay: whether it can train on batches from the replay buffer.
    """

    label: ClassVar[str]
    needs_pairs_between: bool = False
    needs_prefixes: bool = False
    uses_replay: bool = False

    def problems(self) -> Iterator[Problem]:
        """Yield problems with the algorithm's settings alone."""
        yield from ()

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        """Yield reasons why the algorithm cannot train on a task."""
        yield from ()

    def trained_on(self, task: Task, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """Return the training conditions that the algorithm can learn from."""
        return conditions

    def setup(self, module: GFlowNetModule) -> None:
        """Create parameters that depend on the model or on the conditions."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return optimizer parameter groups for the algorithm's own parameters."""
        return []

    def on_fit_start(self, module: GFlowNetModule) -> None:
        """Prepare training; called before the first batch of every ``trainer.fit``."""

    def training_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        """Compute the loss of a batch.

        Returns:
            ``loss``; ``output``, a detached :class:`~gfn_runner.data.trajectories.StepOutput`; and, if
            there are more scalars to log, ``measures``.
        """
        raise NotImplementedError

    def counted_BS(self, terminable_BS: Tensor, length_B: Tensor) -> Tensor:
        """Return a mask of the states whose log-reward the algorithm uses. Shape (B, S)."""
        return terminable_BS

    def before_optimizer_step(self, module: GFlowNetModule) -> None:
        """Called between the backward pass and the optimizer step."""

    def after_optimizer_step(self, module: GFlowNetModule) -> None:
        """Called after the optimizer step."""

    def validation_step(self, module: GFlowNetModule, batch: Batch) -> list[ConditionSamples]:
        """Return the policy's answers for an evaluation batch."""
        return module.draw_answers(batch)

    def missing_value_is_finite(self, name: str, parameter: Tensor) -> bool:
        """Return whether NaN is a valid value in this parameter, meaning that an entry is missing."""
        return False

    def on_save_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        """Add state other than parameters to a checkpoint; plain containers and tensors only."""

    def on_load_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` added."""
