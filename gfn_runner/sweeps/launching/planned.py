"""A run of a sweep on its way: planned, checked, and what has become of it; starts nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf, open_dict

from gfn_runner.cli.compose import check_config
from gfn_runner.cli.resume import finished_metrics
from gfn_runner.config.validation import AUTO, RunConfig
from gfn_runner.errors import UserError
from gfn_runner.report.headline import headline_numbers, optimized_value
from gfn_runner.sweeps.check import checked_for
from gfn_runner.sweeps.record import Job, State, log_length, reason

# Lines of a sweep's command that say nothing about its runs.
SIDE = ("hydra.sweep.dir=", "hydra.mode=", "resume=")


@dataclass
class Planned:
    """A run of the sweep on its way.

    Attributes:
        job: its entry in the record.
        overrides: what the run is started with.
        composed: its config, Hydra's section included.
        config: checked.
        folder: of the run.
        logged: bytes of the run's log before it was started.
    """

    job: Job
    overrides: list[str]
    composed: DictConfig
    config: RunConfig
    folder: Path
    logged: int = 0
    began: float | None = None

    def starts(self) -> None:
        self.job.state, self.began = "running", self.began or time.time()

    def ends(self, state: State, why: str = "", value: float | None = None) -> None:
        """Write down what has become of the run."""
        self.job.state, self.job.why, self.job.value = state, why, value
        if self.began is not None:
            self.job.minutes = (time.time() - self.began) / 60
        if state == "ok":
            metrics = finished_metrics(self.config, self.folder) or {}
            # All parts of the run, which this start of the sweep may have seen the last one of, or none.
            self.job.minutes = metrics.get("run/minutes", self.job.minutes)
            self.job.metrics = headline_numbers(self.config.task.headline, metrics)
            if value is not None and self.config.optimized_metric is not None:
                self.job.metrics = {self.config.optimized_metric: value, **self.job.metrics}

    def fails(self, why: str) -> None:
        """The run has ended badly; ``why`` counts where its log gives no reason."""
        state: State = "timed out" if "timed-out too many times" in why else "failed"
        self.ends(state, reason(self.folder, self.logged) or why)


@dataclass
class Composed:
    """A run of the sweep that nobody has checked: its entry in the record, its overrides, its config."""

    job: Job
    overrides: list[str]
    config: DictConfig


def composed_of(launcher: Any, overrides: list[str], number: int) -> Composed:
    if not any(line.lstrip("+").startswith("resume=") for line in overrides):
        overrides = [*overrides, f"resume={AUTO}"]
    loader = launcher.hydra_context.config_loader
    composed = loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(composed):
        composed.hydra.job.num = number
        # Of a cluster it is not known before, so no folder can be named after it.
        composed.hydra.job.id = str(number)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        subdir = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
    finally:
        HydraConfig.instance().cfg = before
    lines = [line for line in overrides if not line.lstrip("+").startswith((*SIDE, "hydra."))]
    return Composed(Job(number, lines, subdir), overrides, composed)


def plan_of(run: Composed) -> Planned:
    """The run, checked.

    Raises:
        UserError: if its values do not go together.
    """
    composed = run.config
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed])
    with checked_for(composed.hydra.launcher._target_):
        config = check_config(own, list(composed.hydra.overrides.task))
    folder = Path(str(composed.hydra.sweep.dir)) / run.job.folder
    return Planned(run.job, run.overrides, composed, config, folder)


def unfinished(planned: Sequence[Planned]) -> list[Planned]:
    """Those that are to be run; the others get their result."""
    waiting, problems = [], []
    for plan in planned:
        try:
            metrics = finished_metrics(plan.config, plan.folder)
            if metrics is not None:
                plan.job.again = False
                named, default = plan.config.optimized_metric, plan.config.default_metric
                value = optimized_value(named, default, metrics)
                plan.ends("ok", value=value)
                continue
        except UserError as error:
            problems += error.problems
        plan.logged = log_length(plan.folder)
        waiting.append(plan)
    if problems:
        raise UserError(problems)
    return waiting


def announce(job: Job) -> None:
    print(f"  #{job.number}  {job.state}{': ' if job.why else ''}{job.why}", flush=True)


def arguments(plan: Planned) -> tuple[Any, ...]:
    """What hydra-submitit-launcher hands to a job."""
    number = plan.job.number
    return plan.overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state()


def take_result(plan: Planned, job: Any) -> None:
    """The end of a job that has left a result: what the run returned, or what it raised."""
    try:
        plan.ends("ok", value=job.task(0).result().return_value)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and set(line) != {"-"}]
        # Behind the traceback submitit says where its logs are.
        said = [line for line in lines if "Error" in line or "timed-out" in line]
        plan.fails((said or lines or [repr(error)])[-1].strip())
