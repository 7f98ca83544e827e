"""Lightning modules of tiny language models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from gfn_runner.algorithms.base import Algorithm, SamplingSettings
from gfn_runner.algorithms.gflownet import GFlowNet
from gfn_runner.algorithms.schedules import linear_schedule
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.objectives.losses import Objective
from gfn_runner.tasks.base import GFlowNetModule
from tests.tiny_models import tiny_lm


class Bare(GFlowNetModule):
    """An experiment without data and metrics of its own."""

    name = "bare"

    def load(self, seed: int) -> TaskData:
        return TaskData([], [])

    def metrics(self, samples: Sequence[ConditionSamples]) -> dict[str, float]:
        return {}


class NoTrainer:
    """As much of Lightning's trainer as a training step outside of one needs."""

    accumulate_grad_batches = 1
    profiler = None


def tiny_module(
    task: GFlowNetModule,
    trained_by: Objective | Algorithm,
    conditions: Sequence[Condition],
    *,
    lm: LanguageModel | None = None,
    samples: int = 6,
    lr: float = 3e-4,
    warmup_steps: int = 10,
    decay: bool = False,
    **options: Any,
) -> GFlowNetModule:
    """An experiment with a tiny language model, with a random adapter unless ``lm`` is given.

    ``options`` are those of :meth:`GFlowNetModule.attach`.
    """
    own = trained_by if isinstance(trained_by, Algorithm) else GFlowNet(trained_by)
    defaults: dict[str, Any] = {
        "sampling": SamplingSettings(n_conditions=len(conditions), n_samples=samples),
        "optimizer": partial(torch.optim.AdamW, lr=lr, weight_decay=0.0, betas=(0.9, 0.99)),
        "scheduler": partial(linear_schedule, warmup_steps=warmup_steps, decay=decay),
        "max_steps": 10,
    }
    return copy.deepcopy(task).attach(
        lm or tiny_lm(adapter="random"), own, conditions=conditions, **(defaults | options)
    )
