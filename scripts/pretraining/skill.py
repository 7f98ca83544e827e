"""Skill of a base model before training: arithmetic after k worked examples, other tasks without examples."""

from __future__ import annotations

import dataclasses
from typing import Any

from gfn_runner.baselines.prompting import prompt_base_model
from gfn_runner.data.samples import ConditionSamples, limited
from gfn_runner.data.task import Task
from gfn_runner.evaluation.draw import Drawing
from gfn_runner.evaluation.measure import measure
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.tasks.arithmetic import IntegerArithmetic
from gfn_runner.tasks.constrained import ConstrainedGeneration
from gfn_runner.tasks.continuation import SentenceContinuation
from gfn_runner.tasks.contrastive import Contrastive
from gfn_runner.tasks.infilling import StoryInfilling
from gfn_runner.tasks.random_number import RandomNumbers
from gfn_runner.tasks.translation import Translation


def measure_skill(
    name: str, n_questions: int, shots: tuple[int, ...] = (0, 1, 3, 5, 10), seed: int = 0
) -> list[dict[str, Any]]:
    """Measure the accuracy of votes (10 samples at T = 0.1) and of single samples (T = 1) of the base model.

    Args:
        name: as in ``lm.name``.
        n_questions: held-out questions per number of operands.
        shots: numbers of worked examples before the question.

    Returns:
        One record per number of examples: ``shots``, ``questions`` (per number of operands), and for each
        number of operands ``vote``, ``single`` and ``chain`` (share of right chains among the single
        samples that begin one), all in 0..1.
    """
    task = IntegerArithmetic(max_len=36, eval_max_len=36)
    lm = load(LMSettings(name=name), adapter=False)
    rule = string_rule(lm, task, task.eval_max_len)
    options = EvaluationSettings(singles=4)
    conditions = limited(task.load(seed).evaluation, n_questions)
    records = []
    for k in shots:
        samples = prompt_base_model(
            Drawing(lm, task, rule, conditions, options, seed, 1.0), shots=k
        )
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


_TASKS: dict[Task, tuple[str, ...]] = {
    RandomNumbers(): ("invalid_share", "kl", "kl_floor"),
    SentenceContinuation(): ("log_likelihood", "diversity", "grammatical_share"),
    Contrastive(): ("specific_share", "grammatical_share"),
    Translation(): ("right_share", "found_share"),
    ConstrainedGeneration(): ("satisfied_share",),
    StoryInfilling(): ("fits_both_share", "fits_beginning_share", "fits_ending_share"),
}


def measure_tasks(name: str, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure the base model on the bare prompt of every other task with generated data.

    Args:
        name: as in ``lm.name``.
        seed: seed of data and samples.

    Returns:
        For each task, ``<metric>/<evaluation set>`` to value, as in the task's own evaluation.
    """
    lm = load(LMSettings(name=name), adapter=False)
    options = EvaluationSettings(votes=0, singles=20)
    measured = {}
    for task, wanted in _TASKS.items():
        rule = string_rule(lm, task, task.eval_max_len)
        own = options
        if isinstance(task, RandomNumbers):
            own = dataclasses.replace(options, singles=20_000)
        conditions = task.load(seed).evaluation
        samples = prompt_base_model(Drawing(lm, task, rule, conditions, own, seed, 1.0))
        metrics = measure(task, samples)
        kept = {k: v for k, v in metrics.items() if k.partition("/")[0] in wanted}
        measured[task.name] = kept
        print(task.name, kept, flush=True)
    return measured
