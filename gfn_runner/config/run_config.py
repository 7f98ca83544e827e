"""A validated run: its settings, and the objects created from them."""

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

AUTO = "auto"  # possible value of ``resume``


@dataclass(frozen=True)
class RunConfig:
    """A validated run.

    Attributes:
        values: plain containers, as saved in the run's ``config.yaml``. Local paths are absolute.
        task: the task's Lightning module, without a model yet.
        objective: weights on pairs of φ.
        baseline: method that replaces GFlowNet training; ``None`` for GFlowNet training.
        callbacks: by their name in the config, in the order in which Lightning calls them.
        optimized_metric: metric that a run returns to a search, averaged over evaluation sets: a name with
            or without a row or group prefix (``base_3_shot/vote_accuracy``, ``log_reward``); ``None`` uses
            the task's own (``Task.optimized``).
        num_threads: CPU threads of torch; ``None`` keeps torch's default.
        float32_matmul_precision: as in ``torch.set_float32_matmul_precision``; ``None`` is ``high`` (TF32) on
            a GPU with half-precision weights, whose own rounding is coarser, and ``highest`` otherwise.
        resume: folder of the run to resume; ``auto`` resumes the one in the run's own folder, if any;
            or ``None``.
        mode: ``train``, or what to do with the policy in the folder ``run``.
        run: folder of a finished run, for all modes except ``train``.
        prompt: input of the policy, for ``sample`` and ``predict``.
        n: number of samples to draw, for ``sample`` and ``predict``.
        answers: candidate answers, for ``predict``.
        data: conditions of the task, loaded during validation.
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
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # range that torch and numpy accept
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
        """Whether the run trains anything."""
        return self.baseline is None or isinstance(self.baseline, Algorithm)

    @property
    def method(self) -> str:
        """``train``, or the baseline's label."""
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
        """Reward temperature T by optimizer step."""
        found = [c for c in self.callbacks.values() if isinstance(c, RewardTempering)]
        return found[0].schedule if found else Schedule()

    @property
    def default_metric(self) -> str:
        """Metric that a search optimizes if ``optimized_metric`` is not set; empty if the task has none."""
        return self.task.optimized or next(iter(self.task.headline), "")

    @property
    def tags(self) -> tuple[str, ...]:
        """W&B tags: the names of the task and of the objective (or the baseline)."""
        trained = self.objective if self.baseline is None else self.baseline
        return (self.task.name, type(trained).__name__)

    @property
    def algorithm(self) -> Algorithm:
        """Training algorithm: the baseline, if it trains, or GFlowNet training."""
        return self.baseline if isinstance(self.baseline, Algorithm) else GFlowNet(self.objective)

    def make_loggers(self, **runtime: Any) -> list[Logger]:
        """Instantiate the loggers, always including one for ``metrics.jsonl``.

        Each receives those ``runtime`` arguments that it accepts and the config does not set.
        """
        made: list[Logger] = []
        for name, node in self.values["logger"].items():
            if node:
                target = target_of(f"logger.{name}", node, Logger)
                takes = inspect.signature(target).parameters
                own = {k: v for k, v in runtime.items() if k in takes and k not in node}
                made.append(instantiate(f"logger.{name}", node, Logger, **own))
        if not any(isinstance(log, JsonLinesLogger) for log in made):
            # Pages, reports and resuming read metrics.jsonl.
            made.insert(0, JsonLinesLogger(save_dir=runtime["save_dir"]))
        return made
