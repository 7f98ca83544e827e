"""Weights & Biases: Lightning's logger on a run of ours, which never stops training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning.pytorch.loggers import WandbLogger
from pydantic import Field

from gfn_runner.errors import Problem
from gfn_runner.loggers.wandb_run import WandbRun, start_wandb

# As W&B has it.
_NOT_IN_PROJECTS, _LONGEST_PROJECT = "/\\#?%:", 128


class RunLogger(WandbLogger):
    """Lightning's ``WandbLogger`` with what a long run needs of it.

    It goes on offline without an account or a network, continues its own run when a job is resumed or
    requeued, drops what a server does not take in time, and logs metrics against optimizer steps.

    Args:
        mode: ``offline`` writes W&B's files into the run's folder, ``online`` sends them.
        project, entity: as W&B names them; a project's name has at most 128 characters, and none of
            ``/ \\ # ? % :``.
        group: likewise; ``None`` is the multirun that the run belongs to, if any.
        tags: beside the task's and the objective's. Longer ones than W&B's 64 characters are cut, with a
            hash at the end.
        finish_timeout: seconds that the end of a run waits for a server to take what is not sent yet; 0
            waits for ever.
        save_dir: the run's folder; the program gives it, as it does ``config``, ``job_type`` and ``run_tags``.
        job_type: ``train``, a baseline's name, or ``evaluate``.
        run_tags: of the run itself: task and objective.

    Attributes:
        run: the started run; ``None`` where W&B is off or cannot start.
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
        """What W&B would refuse when the run starts."""
        project = arguments.get("project", "gfn_runner")
        if set(project) & set(_NOT_IN_PROJECTS) or not 1 <= len(project) <= _LONGEST_PROJECT:
            allowed = f"1 to {_LONGEST_PROJECT} characters, none of {' '.join(_NOT_IN_PROJECTS)}"
            entity = "logger.wandb.entity=<team> for the part before a slash"
            fix = entity if "/" in project else ""
            yield Problem("logger.wandb.project", f"given {project!r}", allowed, fix)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run has its config from the start."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # W&B would write the word "NaN", which no chart draws.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if self.run is not None:
            self.run.log("scalars", finite, step)

    def finalize(self, status: str) -> None:
        """Nothing: training may be followed by another round, and by the final evaluation."""


class _Disabled:
    """Stands for a run that could not be started."""

    id = name = ""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
