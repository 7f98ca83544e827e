"""Launching of a sweep: validate it as a whole, then hand it to whatever executes its runs.

A run that finished before is not repeated, an interrupted one is resumed, and a failing one does not
affect the others. Every change of a run's state is written to the sweep's record immediately.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import OmegaConf

from gfn_runner.data.samples import TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.files import report_write_errors
from gfn_runner.runtime.overrides import HYDRA_SWEEP_FILE
from gfn_runner.runtime.run_lock import acquire_run_lock
from gfn_runner.runtime.sweep_record import Job, Sweep
from gfn_runner.sweeps.check import LOCAL, SLURM
from gfn_runner.sweeps.launching.cluster import run_on_slurm
from gfn_runner.sweeps.launching.plan import SIDE, Plan, announce, compose_job, validate_job
from gfn_runner.sweeps.launching.processes import run_in_process, run_in_processes

_RUNNERS = {SLURM: run_on_slurm, LOCAL: run_in_processes}
_current: list[Sweep] = []
_planned: dict[int, Plan] = {}


class InvalidSweep(SystemExit):
    """Stops the sweep with the exit code of a user error; Hydra lets ``SystemExit`` pass."""

    def __init__(self, error: UserError):
        super().__init__(2)
        self.error = error


@contextlib.contextmanager
def planned(plans: Sequence[Plan]) -> Iterator[None]:
    """Plan these runs within the context; a search plans none, since it draws their values later."""
    _current.clear()
    _planned.update({plan.job.number: plan for plan in plans})
    try:
        yield
    finally:
        _planned.clear()


def planned_overrides() -> list[list[str]]:
    """Return the overrides of every planned run."""
    return [plan.job.overrides for plan in _planned.values()]


def current_sweep() -> Sweep | None:
    """Return the sweep that this process has started, or ``None``."""
    return _current[-1] if _current else None


def launch(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> Sequence[JobReturn]:
    """Execute runs until they end; those that were not validated before are validated first.

    Args:
        launcher: a launcher of ``hydra_plugins/gfn_runner_launchers.py``, set up by Hydra.
        first: number of the first run within the sweep.

    Returns:
        The return value of each run; ``None`` for failed ones, at which no sweeper stops.

    Raises:
        InvalidSweep: if the sweep's folder holds other runs, another process is executing this sweep, or
            SLURM cannot be asked about its jobs.
    """
    with _locked_sweep(launcher) as folder:
        jobs = _launch(launcher, folder, job_overrides, first)
    return [
        JobReturn(overrides=list(lines), status=JobStatus.COMPLETED, _return_value=job.value)
        for lines, job in zip(job_overrides, jobs, strict=True)
    ]


@contextlib.contextmanager
def _locked_sweep(launcher: Any) -> Iterator[Path]:
    """Yield the sweep's folder, locked against writes by other processes.

    Raises:
        InvalidSweep: replaces a user error; an otherwise empty folder that Hydra created is removed.
    """
    setup_globals()
    folder = Path(str(launcher.config.hydra.sweep.dir))
    try:
        with acquire_run_lock(folder):
            try:
                yield folder
            except UserError:
                if {path.name for path in folder.iterdir()} <= {HYDRA_SWEEP_FILE, ".lock"}:
                    shutil.rmtree(folder)
                raise
    except UserError as error:
        raise InvalidSweep(error) from None


def _launch(
    launcher: Any, folder: Path, job_overrides: Sequence[Sequence[str]], first: int
) -> list[Job]:
    sweep = Sweep.read(folder)
    sweep.searches = not str(launcher.config.hydra.sweeper._target_).endswith(".BasicSweeper")
    jobs, plans = _plans(launcher, job_overrides, first)
    # Unresolved: hydra.sweep.subdir=seed${seed} gives a different name for each job.
    given: Any = OmegaConf.to_container(launcher.config.hydra.overrides, resolve=False)
    sweep.overrides = [
        line for line in (*given["hydra"], *given["task"]) if not line.lstrip("+").startswith(SIDE)
    ]
    with report_write_errors(folder, "hydra.sweep.dir", f"free some, then -m resume={folder}"):
        known = {job.folder: job for job in sweep.plan(jobs)}
        OmegaConf.save(launcher.config, folder / HYDRA_SWEEP_FILE)
    _current[:] = [sweep]
    for plan in plans:
        plan.job = known[plan.job.folder]
    problems: list[Problem] = []
    waiting = [plan for plan in plans if not plan.was_finished(problems)]
    if problems:
        raise UserError(problems)
    sweep.keep()
    finished = sum(job.state == "ok" for job in known.values())
    before = f", {finished} already finished" if finished else ""
    print(f"{len(waiting)} {'run' if len(waiting) == 1 else 'runs'} to do{before}", flush=True)
    for plan in waiting:
        print(f"  #{plan.job.number}  {' '.join(plan.job.beside(sweep.common))}", flush=True)
    if waiting:
        _RUNNERS.get(waiting[0].launcher["_target_"], run_in_process)(launcher, sweep, waiting)
    if sweep.searches:
        _refuse_unmeasured(sweep, plans)
    return list(known.values())


def _plans(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> tuple[list[Job], list[Plan]]:
    """Return the jobs of all runs, and the plans of the valid ones.

    A search draws values that were not validated in advance, some of which may be incompatible: such a run
    is marked as failed.
    """
    jobs, plans = [], []
    loaded: dict[str, TaskData] = {}
    for number, lines in enumerate(job_overrides, first):
        plan = _planned.get(number)
        if plan is None:
            loader = launcher.hydra_context.config_loader
            job, composed = compose_job(loader, launcher.config, lines, number)
            try:
                plan = validate_job(job, composed, loaded)
            except UserError as error:
                job.state = "failed"
                job.why = "; ".join(f"{p.where}: {p.what}" for p in error.problems)
                announce(job)
                jobs.append(job)
                continue
        jobs.append(plan.job)
        plans.append(plan)
    return jobs, plans


def _refuse_unmeasured(sweep: Sweep, plans: Sequence[Plan]) -> None:
    """End a search whose metric no run measures, since no trial would ever have a value.

    A headline metric of the task may be missing in one run and available in the next (the distance of valid
    samples, if there are none): in that case only that trial is skipped.
    """
    if any(job.value is not None for job in sweep.jobs):
        return
    for plan in plans:
        where, _, what = plan.job.why.partition(": ")
        name = (plan.config.optimized_metric or "").split("/")
        unknown = not set(name) & set(plan.config.task.headline)
        if plan.job.state == "failed" and where.endswith("optimized_metric") and unknown:
            allowed = "a name in the metrics.json of the runs, e.g. log_reward"
            raise UserError.one("optimized_metric", what, allowed, "restart the search with it")
