"""Base class of baselines: settings, unsupported tasks, and samples of each row.

``baseline=…`` selects a baseline for any task. It uses the task's data, evaluation and folder, so its metrics
are directly comparable. Baselines that train their own adapter (SFT, PPO, GRPO) are algorithms
(``gfn_runner.algorithms``). The others yield rows: the name of a method and its samples.
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
    """Draw samples from the base model, with the adapter disabled.

    Args:
        row: name of the row, for the log.
        posterior: whether to add posterior samples, if ``d`` has them.
        how: see :func:`draw_answers`.
    """
    d = d if posterior else d.replace(posterior=None)
    with d.lm.base():
        generator = torch_generator_for(d.lm.device, *seed)
        return draw_answers(d, generator, name=f"evaluation, {row}", **how)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Baseline(ABC):
    """A method for comparison that needs no training.

    Attributes:
        label: name in tables.
    """

    label: ClassVar[str]

    def problems(self) -> Iterator[Problem]:
        """Yield problems of the settings that do not depend on a task."""
        yield from ()

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        """Yield properties of a task that this baseline does not support."""
        yield from ()

    @abstractmethod
    def rows(self, drawing: Drawing) -> Rows:
        """Yield the name and samples of each row."""


def few_shot_conditions(
    task: Task, conditions: Sequence[Condition], shots: int, seed: int
) -> list[Condition]:
    """Prepend ``shots`` worked examples to the conditions' prompts; 0 changes nothing."""
    if shots == 0:
        return list(conditions)
    return [
        replace(
            condition,
            prompt=task.few_shot_prompt(condition, shots, rng_for("shots", seed, condition.key)),
        )
        for condition in conditions
    ]
