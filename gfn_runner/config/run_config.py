"""A validated run: its settings, and the objects that it makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from pydantic import Field

from gfn_runner.algorithms.base import Algorithm, SamplingSettings
from gfn_runner.algorithms.em import EMSettings
from gfn_runner.algorithms.gflownet import GFlowNet
from gfn_runner.algorithms.schedules import Schedule
from gfn_runner.baselines.base import Baseline
from gfn_runner.callbacks.live_report import LiveReport
from gfn_runner.callbacks.reward_tempering import RewardTempering
from gfn_runner.config.trainer import TrainerArguments
from gfn_runner.data.samples import TaskData
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.loggers.json_lines import JsonLinesLogger
from gfn_runner.objectives.losses import Objective
from gfn_runner.runtime.targets import instantiate, target_of
from gfn_runner.tasks.base import GFlowNetModule

AUTO = "auto"  # a value of ``resume``


@dataclass(frozen=True)
class RunConfig:
    """A validated run.

    Attributes:
        values: plain containers; what ``config.yaml`` of a run holds. Local paths are absolute.
        task: the experiment, without a model.
        objective: weights on pairs of φ.
        baseline: what is done in place of GFlowNet training; ``None`` for that.
        callbacks: by their name in the config, in the order in which Lightning calls them.
        optimized_metric: what a run returns to a search: a metric's name, with a row or group as prefix or
            without (``log_reward``, ``base_3_shot/vote_accuracy``), averaged over evaluation sets; ``None``:
            the task's own (``Task.optimized``).
        num_threads: CPU threads of torch; ``None`` leaves torch's own choice.
        float32_matmul_precision: as in ``torch.set_float32_matmul_precision``; ``None`` is ``high`` (TF32) on
            a GPU beside weights in half precision, whose own rounding is coarser, and ``highest`` elsewhere.
        resume: folder of the run to go on with; ``auto`` for the one in the run's own folder, if there is
            one; or ``None``.
        mode: ``train``; or what to do with the policy of the folder ``run``.
        run: folder of a finished run, for every mode but ``train``.
        prompt: what the policy reads, for ``sample`` and ``predict``.
        n: samples to draw, for ``sample`` and ``predict``.
        answers: to choose from, for ``predict``.
        data: the task's conditions, read during validation.
    """

    values: dict[str, Any] = field(repr=False)
    task: GFlowNetModule
    objective: Objective
    baseline: Algorithm | Baseline | None
    optimizer: Callable[..., torch.optim.Optimizer]
    scheduler: Callable[..., Any]
    trainer: TrainerArguments
    lm: LMSettings
    sampling: SamplingSettings
    evaluation: EvaluationSettings
    em: EMSettings
    callbacks: dict[str, L.Callback]
    optimized_metric: Annotated[str, Field(min_length=1)] | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # what torch and numpy take
    num_threads: Annotated[int, Field(ge=1)] | None
    float32_matmul_precision: Literal["highest", "high", "medium"] | None
    output: str
    resume: str | None
    dry_run: bool
    mode: Literal["train", "sample", "predict", "evaluate"]
    run: str | None
    prompt: str | None
    n: Annotated[int, Field(ge=1)]
    answers: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...]
    data: TaskData = field(repr=False)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.baseline is None or isinstance(self.baseline, Algorithm)

    @property
    def method(self) -> str:
        """``train`` or the baseline's label."""
        return "train" if self.baseline is None else self.baseline.label.lower()

    @property
    def writes_pages(self) -> bool:
        """Whether ``report.html`` is written."""
        report = next((c for c in self.callbacks.values() if isinstance(c, LiveReport)), None)
        return report is not None and report.pages != "off"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all E-steps."""
        return max(1, self.em.rounds) * self.trainer.max_steps

    @property
    def reward_temperature(self) -> Schedule:
        """By optimizer step."""
        found = [c for c in self.callbacks.values() if isinstance(c, RewardTempering)]
        return found[0].schedule if found else Schedule()

    @property
    def default_metric(self) -> str:
        """What a search optimizes where ``optimized_metric`` is not set; empty if the task has none."""
        return self.task.optimized or next(iter(self.task.headline), "")

    @property
    def tags(self) -> tuple[str, ...]:
        """By which W&B finds runs: the task's and the objective's (or the baseline's) name."""
        trained = self.objective if self.baseline is None else self.baseline
        return (self.task.name, type(trained).__name__)

    @property
    def algorithm(self) -> Algorithm:
        """What is trained with: a baseline that trains, or GFlowNet training."""
        return self.baseline if isinstance(self.baseline, Algorithm) else GFlowNet(self.objective)

    def make_loggers(self, **runtime: Any) -> list[Logger]:
        """Loggers, ``metrics.jsonl`` always among them.

        Each gets those of the ``runtime`` arguments that it takes and the config does not give.
        """
        made: list[Logger] = []
        for name, node in self.values["logger"].items():
            if node:
                target = target_of(f"logger.{name}", node, Logger)
                takes = inspect.signature(target).parameters
                own = {k: v for k, v in runtime.items() if k in takes and k not in node}
                made.append(instantiate(f"logger.{name}", node, Logger, **own))
        if not any(isinstance(log, JsonLinesLogger) for log in made):
            # Pages, resume and reports read metrics.jsonl.
            made.insert(0, JsonLinesLogger(save_dir=runtime["save_dir"]))
        return made
