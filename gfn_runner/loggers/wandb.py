"""Weights & Biases: Lightning's logger on our own run, whose errors never stop training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch.loggers import WandbLogger
from pydantic import Field

from gfn_runner.errors import Problem
from gfn_runner.loggers.wandb_run import WandbRun, start_wandb

# Limits set by W&B.
_NOT_IN_PROJECTS, _LONGEST_PROJECT = "/\\#?%:", 128


class RunLogger(WandbLogger):
    """Lightning's ``WandbLogger`` with additions for long runs.

    It falls back to offline mode without an account or a network, continues its own run when a job is
    resumed or requeued, drops data that a server does not accept in time, and logs metrics against
    optimizer steps.

    Args:
        mode: ``offline`` writes W&B's files into the run's folder, ``online`` sends them.
        project, entity: as in W&B; a project name has at most 128 characters, and none of ``/ \\ # ? % :``.
        group: as in W&B; ``None`` uses the multirun that the run belongs to, if any.
        tags: in addition to those of task and objective. Tags longer than W&B's 64 characters are
            truncated, with a hash at the end.
        finish_timeout: seconds to wait at the end of a run until all data are sent to the server; 0 waits
            forever.
        save_dir: the run's folder; set by the program, like ``config``, ``job_type`` and ``run_tags``.
        job_type: ``train``, a baseline's name, or ``evaluate``.
        run_tags: tags of the run itself: task and objective.

    Attributes:
        run: the started run; ``None`` if W&B is off or cannot start.
    """

    runtime_arguments = ("save_dir", "config", "job_type", "run_tags")

    def __init__(
        self,
        mode: Literal["offline", "online"] = "offline",
        project: str = "gfn_runner",
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[Annotated[str, Field(min_length=1)]] = (),
        finish_timeout: Annotated[float, Field(ge=0)] = 120.0,
        *,
        save_dir: str | Path = ".",
        config: Mapping[str, Any] | None = None,
        job_type: str = "train",
        run_tags: Sequence[str] = (),
    ) -> None:
        self.run: WandbRun | None = start_wandb(
            Path(save_dir),
            mode=mode,
            finish_timeout=finish_timeout,
            group=group,
            tags=[*tags, *run_tags],
            project=project,
            entity=entity,
            job_type=job_type,
            config=dict(config or {}),
        )
        super().__init__(
            save_dir=save_dir,
            project=project,
            experiment=self.run.run if self.run is not None else _Disabled(),  # type: ignore[arg-type]
        )

    @classmethod
    def argument_problems(cls, arguments: Mapping[str, Any]) -> Iterator[Problem]:
        """Yield arguments that W&B would reject when the run starts."""
        project = arguments.get("project", "gfn_runner")
        if set(project) & set(_NOT_IN_PROJECTS) or not 1 <= len(project) <= _LONGEST_PROJECT:
            allowed = f"1 to {_LONGEST_PROJECT} characters, none of {' '.join(_NOT_IN_PROJECTS)}"
            entity = "logger.wandb.entity=<team> for the part before a slash"
            fix = entity if "/" in project else ""
            yield Problem("logger.wandb.project", f"given {project!r}", allowed, fix)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has its config from the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B would write the string "NaN", which charts do not show.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if self.run is not None:
            self.run.log("scalars", finite, step)

    def finalize(self, status: str) -> None:
        """Do nothing: another round of training or the final evaluation may follow."""


class _Disabled:
    """Placeholder for a run that could not be started."""

    id = name = ""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
