"""A sweep brought to its end: planned, checked as a whole, and handed to whatever starts its runs.

A run that has finished before is not run again, one that was interrupted goes on, and one that fails
leaves the others alone. What becomes of each is written into the sweep's record as it happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import OmegaConf

from gfn_runner.cli.resume import held
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.files import writing_to
from gfn_runner.sweeps.check import launcher_settings
from gfn_runner.sweeps.launching.cluster import on_slurm
from gfn_runner.sweeps.launching.here import here
from gfn_runner.sweeps.launching.planned import (
    SIDE,
    Composed,
    Planned,
    announce,
    composed_of,
    plan_of,
    unfinished,
)
from gfn_runner.sweeps.launching.processes import on_this_machine
from gfn_runner.sweeps.record import Job, Sweep
from gfn_runner.sweeps.settings import LocalSettings, SlurmSettings

_current: list[Sweep] = []


class Refused(SystemExit):
    """These runs are not started: a mistake shows that the command line alone does not tell."""

    def __init__(self, error: UserError):
        super().__init__(2)
        self.error = error


def opened() -> Sweep | None:
    """The sweep that this process has begun; ``None`` if it has not come to that."""
    return _current[-1] if _current else None


def launch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> Sequence[JobReturn]:
    """Bring runs to their end.

    Args:
        launcher: one of ``hydra_plugins/gfn_runner_launchers.py``, set up by Hydra.
        job_overrides: of each run.
        first: number of the first one within the sweep.

    Returns:
        What each run returns; of one that has failed ``None``, which no sweeper stops at.

    Raises:
        Refused: if the sweep's folder holds other runs, another process is at this sweep, or SLURM, asked
            what it has of it, gives no answer.
    """
    setup_globals()
    folder = Path(str(launcher.config.hydra.sweep.dir))
    with contextlib.ExitStack() as stack:
        try:
            # Of two processes each would submit every run.
            stack.enter_context(held(folder))
            jobs = _brought_to_their_end(launcher, folder, job_overrides, first)
        except UserError as error:
            raise Refused(error) from None
    return [
        JobReturn(overrides=list(lines), status=JobStatus.COMPLETED, _return_value=job.value)
        for lines, job in zip(job_overrides, jobs, strict=True)
    ]


def _brought_to_their_end(
    launcher: Any, folder: Path, job_overrides: Sequence[Sequence[str]], first: int
) -> list[Job]:
    sweep = Sweep.read(folder)
    sweep.searches = _searches(launcher)
    runs = [composed_of(launcher, list(o), first + i) for i, o in enumerate(job_overrides)]
    planned = _checked(runs, passes_over=_searches(launcher))
    with writing_to(folder, "hydra.sweep.dir", f"free some, then -m resume={folder}"):
        jobs = sweep.plan([run.job for run in runs])
    of_number = {job.number: job for job in jobs}
    for plan in planned:
        plan.job = of_number[plan.job.number]
    waiting = unfinished(planned)
    # As they were given: hydra.sweep.subdir=seed${seed} is another name for each job.
    given: Any = OmegaConf.to_container(launcher.config.hydra.overrides, resolve=False)
    sweep.overrides = [
        line for line in (*given["hydra"], *given["task"]) if not line.lstrip("+").startswith(SIDE)
    ]
    _current[:] = [sweep]
    sweep.keep()
    _say(sweep, jobs, waiting)
    if waiting:
        options: Any = OmegaConf.to_container(waiting[0].composed.hydra.launcher, resolve=True)
        settings = launcher_settings(options)
        if isinstance(settings, SlurmSettings):
            on_slurm(launcher, sweep, waiting)
        elif isinstance(settings, LocalSettings):
            on_this_machine(launcher, sweep, waiting, settings)
        else:
            here(launcher, sweep, waiting)
    if _searches(launcher):
        _refuse_unmeasured(sweep, planned)
    return jobs


def _refuse_unmeasured(sweep: Sweep, planned: Sequence[Planned]) -> None:
    """End a search whose metric no run measures: no trial would have a value.

    A headline metric of the task may be missing of one run and be there of the next (the distance of
    valid samples, where none is valid): that trial alone is passed over.
    """
    if any(job.value is not None for job in sweep.jobs):
        return
    for plan in planned:
        where, _, what = plan.job.why.partition(": ")
        name = (plan.config.optimized_metric or "").split("/")
        unknown = not set(name) & set(plan.config.task.headline)
        if plan.job.state == "failed" and where.endswith("optimized_metric") and unknown:
            allowed = "a name in the metrics.json of the runs, e.g. log_reward"
            raise UserError.one("optimized_metric", what, allowed, "begin the search anew with it")


def _searches(launcher: Any) -> bool:
    """Whether the runs are trials of a search, which draws values that nobody has seen before."""
    return not str(launcher.config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _checked(runs: Sequence[Composed], *, passes_over: bool) -> list[Planned]:
    """Runs whose values go together; of the others the record says why they do not.

    Args:
        runs: all.
        passes_over: whether the others have failed, and these are run.

    Raises:
        UserError: if the others are not passed over; with the problems of all.
    """
    planned, problems = [], dict[str, Problem]()
    for run in runs:
        try:
            planned.append(plan_of(run))
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
            run.job.state = "failed"
            run.job.why = "; ".join(f"{p.where}: {p.what}" for p in error.problems)
            if passes_over:
                announce(run.job)
    if problems and not passes_over:
        raise UserError(list(problems.values()))
    return planned


def _say(sweep: Sweep, jobs: Sequence[Job], waiting: Sequence[Planned]) -> None:
    finished = sum(job.state == "ok" for job in jobs)
    has = "has" if finished == 1 else "have"
    before = f", {finished} {has} finished before" if finished else ""
    runs = "run" if len(waiting) == 1 else "runs"
    print(f"{len(waiting)} {runs} to do{before}", flush=True)
    for plan in waiting:
        print(f"  #{plan.job.number}  {' '.join(plan.job.beside(sweep.common))}", flush=True)
