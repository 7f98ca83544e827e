"""Direct answers: the most likely answer choice right after the prompt, without a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gfn_runner.baselines.base import few_shot_conditions
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.evaluation.draw import Drawing
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.scoring import score_suffixes
from gfn_runner.runtime.status import ProgressLogger


def answers_directly(task: Task, conditions: Sequence[Condition]) -> bool:
    """Return whether the task supports this baseline."""
    return any(map(task.direct_choices, conditions))


@torch.no_grad()
def answer_directly(d: Drawing, *, shots: int) -> list[ConditionSamples]:
    """Score the task's direct choices after ``shots`` labelled examples, without sampling.

    Args:
        d: its model answers with its active adapter, or as the base model within ``lm.base()``.
        shots: number of labelled examples before each prompt.

    Returns:
        One answer per condition, represented as the answer to an empty sample: vote, single and greedy
        answer are identical.
    """
    results, lm = [], d.lm
    with ProgressLogger(f"evaluation, direct_{shots}_shot", len(d.conditions)) as count:
        for start in range(0, len(d.conditions), d.options.batch):
            part = d.conditions[start : start + d.options.batch]
            contexts = d.prompts(few_shot_conditions(d.task, part, shots, d.seed))
            choices = [[lm.encode(text) for text in d.task.direct_choices(c)] for c in part]
            empty = Trajectories.empty(len(part), lm.device)
            columns = [
                score_suffixes(lm, GivenStrings(contexts, texts, empty, d.rule))
                for texts in zip(*choices, strict=True)
            ]
            rows = torch.stack(columns, dim=1).tolist()
            results += [_as_samples(c, row) for c, row in zip(part, rows, strict=True)]
            count.advance(len(part))
    return results


def _as_samples(condition: Condition, log_probs: Sequence[float]) -> ConditionSamples:
    return ConditionSamples(
        condition,
        votes=("",),
        singles=("",),
        log_reward=(),
        log_pf=(),
        answer_log_probs=(log_probs,),
        vote_answer_log_probs=(log_probs,),
        greedy="",
        greedy_answer_log_probs=log_probs,
    )
