"""The rows that stand below the policy in a table: which samples of the base model, by which name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gfn_runner.baselines.direct import answer_directly, answers_directly
from gfn_runner.baselines.prompting import prompt_base_model
from gfn_runner.baselines.resampling import resample_base_model
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.settings import EvaluationSettings
from gfn_runner.tasks.base import ConditionSamples, Task
from gfn_runner.types import Condition


def baseline_rows(
    lm: LanguageModel,
    task: Task,
    rule: StringRule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
    *,
    seed: int,
    temperature: float,
) -> Iterator[tuple[str, list[ConditionSamples]]]:
    """Name and samples of every baseline that the settings ask for, one after the other.

    Args:
        lm, task, rule, conditions, options: as for the policy.
        seed: of everything drawn.
        temperature: reward temperature of the posterior that resampling aims at.
    """
    at_once = answers_directly(task, conditions)
    for shots in options.shots(task):
        if at_once:
            yield (
                f"direct_{shots}_shot",
                answer_directly(
                    lm, task, rule, conditions, shots=shots, batch=options.batch, seed=seed
                ),
            )
        # Labelled examples show how to answer, and not how to write a sample.
        if not (at_once and shots):
            drawn = prompt_base_model(lm, task, rule, conditions, options, shots=shots, seed=seed)
            yield f"base_{shots}_shot", drawn
    for at in options.baseline_temperatures:
        drawn = prompt_base_model(
            lm, task, rule, conditions, options, shots=0, seed=seed, temperature=at
        )
        yield f"base_at_T{at:g}", drawn
    if options.resampled:
        drawn = resample_base_model(
            lm, task, rule, conditions, options, seed=seed, temperature=temperature
        )
        yield "resampled", drawn
