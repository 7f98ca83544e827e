"""The runs of a sweep: composing and validating them, and recording their states. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig, OmegaConf, open_dict

from gfn_runner.config.compose import check_config
from gfn_runner.config.run_config import AUTO, RunConfig
from gfn_runner.data.samples import TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.report.headline import optimized_value
from gfn_runner.run.resume import finished_metrics
from gfn_runner.runtime.sweep_record import Job, StateName, log_length, reason
from gfn_runner.sweeps.check import checked_for, launcher_options

# Overrides of a sweep's command line that do not affect its runs.
SIDE = ("hydra.sweep.dir=", "hydra.mode=", "resume=")


@dataclass
class Plan:
    """A validated run of the sweep.

    Attributes:
        composed: its config, including the ``hydra`` node.
        logged: size of the run's log in bytes before it was started.
    """

    job: Job
    composed: DictConfig
    config: RunConfig
    logged: int = 0

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(str(self.composed.hydra.sweep.dir)) / self.job.folder

    @property
    def launcher(self) -> dict[str, Any]:
        """The resolved ``hydra.launcher``."""
        options: Any = OmegaConf.to_container(self.composed.hydra.launcher, resolve=True)
        return options

    @property
    def options(self) -> Any:
        """Validated options of the launcher; ``None`` for a launcher without options."""
        return launcher_options(self.launcher)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Arguments for calling the launcher in a separate process."""
        return self.composed, Singleton.get_state()

    def starts(self) -> None:
        self.job.state, self.job.why = "running", ""

    def ends(self, state: StateName, why: str = "", value: float | None = None) -> None:
        """Record the outcome of the run."""
        self.job.state, self.job.why, self.job.value = state, why, value
        if self.job.ended and self.job.again:
            announce(self.job)

    def fails(self, why: str) -> None:
        """Mark the run as failed; ``why`` is used if its log gives no reason."""
        state: StateName = "timed out" if "timed-out too many times" in why else "failed"
        self.ends(state, reason(self.folder, self.logged) or why)

    def takes_result(self, job: Any) -> None:
        """Record the outcome of a submitit job that left a result: a return value or an exception."""
        try:
            value = job.task(0).result().return_value
        except Exception as error:
            lines = [line for line in str(error).splitlines() if line.strip("- ")]
            # After the traceback, submitit prints the location of its logs.
            reasons = [line for line in lines if "Error" in line or "timed-out" in line]
            self.fails((reasons or lines or [repr(error)])[-1].strip())
        else:
            self.ends("ok", value=value)

    def was_finished(self, problems: list[Problem]) -> bool:
        """Return whether the folder contains this run, finished; if so, record its result.

        If the folder contains another run, append that to ``problems``.
        """
        self.logged = log_length(self.folder)
        try:
            metrics = finished_metrics(self.config, self.folder)
            if metrics is None:
                return False
            named, default = self.config.optimized_metric, self.config.default_metric
            value = optimized_value(named, default, metrics)
        except UserError as error:
            problems += error.problems
            return False
        self.job.again = False
        self.ends("ok", value=value)
        return True


def compose_job(
    loader: Any, config: DictConfig, overrides: Sequence[str], number: int
) -> tuple[Job, DictConfig]:
    """Return a run's entry in the record, and its config including the ``hydra`` node."""
    lines = list(overrides)
    if not any(line.lstrip("+").startswith("resume=") for line in lines):
        lines.append(f"resume={AUTO}")
    composed = loader.load_sweep_config(config, lines)
    with open_dict(composed):
        composed.hydra.job.num = number
        # The cluster's job id is not known yet, so folders cannot be named after it.
        composed.hydra.job.id = str(number)
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(composed)
    try:
        folder = str(OmegaConf.select(composed, "hydra.sweep.subdir"))
    finally:
        HydraConfig.instance().cfg = before
    own = [line for line in lines if not line.lstrip("+").startswith((*SIDE, "hydra."))]
    return Job(number, own, folder), composed


def validate_job(job: Job, composed: DictConfig, loaded: dict[str, TaskData]) -> Plan:
    """Validate the config of a run.

    Args:
        loaded: data of the sweep's other runs, see ``validation.check``.

    Raises:
        UserError: lists every problem of its config.
    """
    with checked_for(composed.hydra.launcher._target_):
        return Plan(job, composed, check_config(composed, loaded))


def announce(job: Job) -> None:
    print(f"  #{job.number}  {job.state}{': ' if job.why else ''}{job.why}", flush=True)
