"""The base model behind worked examples or at another temperature, sampled like the policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.tasks.base import Task


def few_shot_conditions(
    task: Task, conditions: Sequence[Condition], shots: int, seed: int
) -> list[Condition]:
    """The conditions with ``shots`` worked examples in front of their prompts; 0 changes nothing."""
    if shots == 0:
        return list(conditions)
    return [
        dataclasses.replace(
            condition,
            prompt=task.few_shot_prompt(condition, shots, rng_for("shots", seed, condition.key)),
        )
        for condition in conditions
    ]


def prompt_base_model(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    *,
    shots: int,
    seed: int,
    temperature: float = 1.0,
) -> list[ConditionSamples]:
    """Sample the base model (adapter off); same numbers of samples and rule.

    Args:
        lm, task, rule, conditions, options: as for the policy.
        shots: worked examples in front of each prompt.
        seed: of examples and samples.
        temperature: of the singles, token by token.
    """
    prompted = few_shot_conditions(task, conditions, shots, seed)
    named = () if temperature == 1.0 else (temperature,)
    generator = torch_generator_for(lm.device, "prompting", seed, shots, *named)
    name = f"base_at_T{temperature:g}" if named else f"base_{shots}_shot"
    with lm.base():
        return draw_answers(
            lm,
            task,
            rule,
            prompted,
            options,
            generator,
            temperature=temperature,
            name=f"evaluation, {name}",
        )
