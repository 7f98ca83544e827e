"""What a baseline is: settings, what it cannot do, and the rows that it draws.

A baseline is chosen by ``baseline=…`` beside any task. It shares the task's data, evaluation and folder,
so that its numbers stand in the same columns. Some train an adapter of their own (SFT, PPO, GRPO): these are
algorithms (``gfn_runner.algorithms``). The others draw rows: names and samples of a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import Drawing, draw_answers
from gfn_runner.runtime.seeds import rng_for, torch_generator_for

Rows = Iterator[tuple[str, list[ConditionSamples]]]


def draw_row(
    d: Drawing, row: str, *seed: object, posterior: bool = False, **how: Any
) -> list[ConditionSamples]:
    """Samples of the base model, adapter off.

    Args:
        row: name for the log.
        posterior: whether samples of the posterior are added, if ``d`` has them.
        how: see :func:`draw_answers`.
    """
    d = d if posterior else d.replace(posterior=None)
    with d.lm.base():
        generator = torch_generator_for(d.lm.device, *seed)
        return draw_answers(d, generator, name=f"evaluation, {row}", **how)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Baseline(ABC):
    """A method to be compared with that trains nothing.

    Attributes:
        label: what a table calls it.
    """

    label: ClassVar[str]

    def problems(self) -> Iterator[Problem]:
        """What is impossible in the settings alone."""
        yield from ()

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        """What of a task this baseline cannot do."""
        yield from ()

    @abstractmethod
    def rows(self, drawing: Drawing) -> Rows:
        """Name and samples of each of its rows."""


def few_shot_conditions(
    task: Task, conditions: Sequence[Condition], shots: int, seed: int
) -> list[Condition]:
    """The conditions with ``shots`` worked examples in front of their prompts; 0 changes nothing."""
    if shots == 0:
        return list(conditions)
    return [
        replace(
            condition,
            prompt=task.few_shot_prompt(condition, shots, rng_for("shots", seed, condition.key)),
        )
        for condition in conditions
    ]
