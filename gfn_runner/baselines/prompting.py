"""The base model with worked examples, or at another temperature."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.baselines.base import Baseline, Rows, draw_row, few_shot_conditions
from gfn_runner.baselines.direct import answer_directly, answers_directly
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.errors import Problem, UserError
from gfn_runner.evaluation.draw import Drawing
from gfn_runner.runtime.seeds import rng_for

logger = logging.getLogger(__name__)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Prompting(Baseline):
    """The base model with worked examples, which are drawn anew for each seed and question.

    Attributes:
        shots: numbers of examples; numbers that do not fit into the model's context are skipped with a
            warning.
    """

    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0, 3, 5, 10, 20)

    label: ClassVar[str] = "prompting"

    def problems(self) -> Iterator[Problem]:
        if not self.shots:
            yield Problem("baseline.shots", "given none", "at least one number of examples")

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        most = max(self.shots, default=0)
        for condition in data.evaluation[: 1 if most else 0]:
            try:
                task.few_shot_prompt(condition, most, rng_for("check"))
            except UserError as error:
                yield from (dataclasses.replace(p, where="baseline.shots") for p in error.problems)

    def rows(self, drawing: Drawing) -> Rows:
        return shot_rows(drawing, self.shots)


def prompt_base_model(
    d: Drawing, *, shots: int = 0, temperature: float = 1.0
) -> list[ConditionSamples]:
    """Sample from the base model after worked examples.

    Args:
        d: as for the policy.
        shots: number of worked examples before each prompt.
        temperature: per-token sampling temperature of the singles.
    """
    named = () if temperature == 1.0 else (temperature,)
    row = f"base_at_T{temperature:g}" if named else f"base_{shots}_shot"
    prompted = d.replace(conditions=few_shot_conditions(d.task, d.conditions, shots, d.seed))
    seed = ("prompting", d.seed, shots, *named)
    return draw_row(prompted, row, *seed, posterior=not named, at=temperature)


def shot_rows(d: Drawing, shots: Sequence[int]) -> Rows:
    """Yield a row for each number of worked examples; numbers that exceed the context are skipped."""
    at_once = answers_directly(d.task, d.conditions)
    for k in shots:
        too_long = _tokens_beyond_context(d, k)
        if too_long:
            logger.warning(
                "skipping the row with %d worked examples: the prompt is up to %d tokens too long",
                k,
                too_long,
            )
            continue
        if at_once:
            with d.lm.base():
                answers = answer_directly(d, shots=k)
            yield f"direct_{k}_shot", answers
        # Labelled examples show how to answer, but not how to write a sample.
        if not (at_once and k):
            yield f"base_{k}_shot", prompt_base_model(d, shots=k)


def _tokens_beyond_context(d: Drawing, shots: int) -> int:
    """Return by how many tokens the longest prompt plus a string exceeds the context; 0 if it fits."""
    if d.lm.context_length is None:
        return 0
    prompted = few_shot_conditions(d.task, d.conditions, shots, d.seed)
    longest = max(len(d.lm.encode_prompt(condition.prompt)) for condition in prompted)
    return max(0, longest + d.rule.max_len + 1 - d.lm.context_length)
