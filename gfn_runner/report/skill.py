"""What a base model can do in arithmetic with k worked examples, and whether its chains are right."""

from __future__ import annotations

from typing import Any

from gfn_runner.baselines.prompting import prompt_base_model
from gfn_runner.evaluation import EvaluationSettings, limited
from gfn_runner.lm.policy import LMSettings, load
from gfn_runner.tasks.arithmetic import Arithmetic
from gfn_runner.tasks.base import ConditionSamples
from gfn_runner.tasks.rule import string_rule


def measure_skill(
    name: str, n_questions: int, shots: tuple[int, ...] = (0, 1, 3, 5, 10), seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of the base model by vote (10 samples at T = 0.1) and of single samples (T = 1).

    Args:
        name: as ``lm.name``.
        n_questions: held-out questions per number of operands.
        shots: numbers of worked examples in front of the question.

    Returns:
        One record a number of examples: ``shots``, ``questions`` (per number of operands), and per
        number of operands ``vote``, ``single`` and ``chain`` (share of right chains among
        the single samples that begin one), all in 0..1.
    """
    task = Arithmetic(max_len=36, eval_max_len=36)
    lm = load(LMSettings(name=name), adapter=False)
    rule = string_rule(lm, task, task.eval_max_len)
    options = EvaluationSettings(singles=4)
    conditions = limited(task.load(seed).evaluation, n_questions)
    records = []
    for k in shots:
        samples = prompt_base_model(lm, task, rule, conditions, options, shots=k, seed=seed)
        metrics = task.metrics(samples)
        records.append(
            {
                "shots": k,
                "questions": n_questions,
                "vote": _per_group(metrics, "vote_accuracy"),
                "single": _per_group(metrics, "single_accuracy"),
                "chain": _chains(samples),
            }
        )
        print(records[-1], flush=True)
    return records


def _per_group(metrics: dict[str, float], name: str) -> dict[str, float]:
    return {key.split("/")[1]: v for key, v in metrics.items() if key.split("/")[0] == name}


def _chains(samples: list[ConditionSamples]) -> dict[str, float | None]:
    """Share of right chains among the samples that hold a "=" """
    shares: dict[str, float | None] = {}
    for group in sorted({sample.condition.group for sample in samples}):
        right = [
            text.strip() == sample.condition.facts["expression"].steps()
            for sample in samples
            if sample.condition.group == group
            for text in sample.singles
            if "=" in text
        ]
        shares[group] = sum(right) / len(right) if right else None
    return shares
