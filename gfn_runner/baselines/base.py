"""What a baseline is: settings, what it cannot do, and the rows that it draws.

A baseline is chosen by ``baseline=…`` beside any task. It shares the task's data, evaluation and folder,
so that its numbers stand in the same columns. Some train an adapter of their own (SFT, PPO, GRPO): these are
algorithms (``gfn_runner.algorithms``). The others draw rows: names and samples of a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.errors import Problem
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.runtime.seeds import rng_for, torch_generator_for

Rows = Iterator[tuple[str, list[ConditionSamples]]]


@dataclass(frozen=True)
class Drawing:
    """What the rows of a baseline are drawn with; the same as for a policy.

    Attributes:
        lm, task, rule, conditions, options: of the evaluation.
        seed: of everything drawn.
        temperature: reward temperature of the posterior.
        posterior: adds samples of the posterior to those of a row whose log q is the model's.
    """

    lm: LanguageModel
    task: Task
    rule: StringRule
    conditions: Sequence[Condition]
    options: EvaluationSettings
    seed: int
    temperature: float
    posterior: Callable[[ConditionSamples], ConditionSamples] | None = None

    def draw(
        self,
        row: str,
        *seed: object,
        conditions: Sequence[Condition] | None = None,
        options: EvaluationSettings | None = None,
        **how: Any,
    ) -> list[ConditionSamples]:
        """Samples of the base model, adapter off.

        Args:
            row: name for the log.
            seed: parts of the seed.
            conditions, options: in place of its own.
            how: see :func:`draw_answers`.
        """
        with self.lm.base():
            return draw_answers(
                self.lm,
                self.task,
                self.rule,
                self.conditions if conditions is None else conditions,
                options or self.options,
                torch_generator_for(self.lm.device, *seed),
                name=f"evaluation, {row}",
                **how,
            )


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
