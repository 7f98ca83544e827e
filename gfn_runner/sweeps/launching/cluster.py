"""Runs of a sweep as jobs of SLURM: submitted, found again, waited for, by submitit."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from gfn_runner.errors import UserError
from gfn_runner.sweeps import slurm
from gfn_runner.sweeps.check import launcher_settings
from gfn_runner.sweeps.launching.planned import Planned, announce, arguments, take_result
from gfn_runner.sweeps.launching.signals import undisturbed
from gfn_runner.sweeps.record import Sweep
from gfn_runner.sweeps.settings import SlurmSettings

logger = logging.getLogger(__name__)
# Seconds in which the result of a job that has ended may still come over a slow file system.
_GRACE = 15


def on_slurm(launcher: Any, sweep: Sweep, waiting: Sequence[Planned]) -> None:
    """Submit what SLURM does not have yet, and wait for all.

    What SLURM refuses has failed with its word for it, and stops no other.

    Raises:
        UserError: if SLURM does not answer what it has already. Nothing is submitted then.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        _cancel_unknown(sweep, waiting)
        watched = _still_there(waiting)
    except slurm.Unreachable as error:
        raise UserError.one(
            "hydra/launcher",
            f"SLURM does not tell what it has of this sweep ({error})",
            "a cluster that is up",
            f"python -m gfn_runner -m resume={sweep.folder}",
        ) from None
    groups: dict[str, list[Planned]] = {}
    for plan in waiting:
        if plan.job.number not in watched:
            groups.setdefault(repr(_slurm_settings(plan)), []).append(plan)
    refused: list[Planned] = []
    for group in groups.values():
        # An array has one shape: runs of one and of two GPUs are two arrays.
        with undisturbed():  # what SLURM has taken is on record
            try:
                for plan, job in zip(group, _submit(launcher, group), strict=True):
                    plan.job.job_id, plan.job.state = job.job_id, "submitted"
                    watched[plan.job.number] = job
            except (FailedJobError, FailedSubmissionError, OSError) as error:
                for plan in group:
                    plan.fails(f"could not be submitted: {_said(error)}")
                refused += group
            sweep.keep()
    _say_submitted(sweep, watched, refused)
    _watch(sweep, {plan.job.number: plan for plan in waiting}, watched)


def _said(error: Exception) -> str:
    """What sbatch has said; submitit has it as the error's own text, behind a line of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in own or lines)


def _say_submitted(sweep: Sweep, watched: dict[int, Any], refused: Sequence[Planned]) -> None:
    if watched:
        ids = ", ".join(dict.fromkeys(job.job_id.split("_")[0] for job in watched.values()))
        print(f"submitted: SLURM job {ids}; logs are in {sweep.folder / '.submitit'}", flush=True)
    for why in dict.fromkeys(plan.job.why for plan in refused):
        runs = " ".join(f"#{plan.job.number}" for plan in refused if plan.job.why == why)
        then = "the others are waited for" if watched else "no run is"
        print(
            f"gfn_runner: {runs}: {why}; {then}; -m resume={sweep.folder} tries again", flush=True
        )


def _slurm_settings(plan: Planned) -> SlurmSettings:
    options: Any = OmegaConf.to_container(plan.composed.hydra.launcher, resolve=True)
    settings = launcher_settings(options)
    assert isinstance(settings, SlurmSettings)
    return settings


def _cancel_unknown(sweep: Sweep, waiting: Sequence[Planned]) -> None:
    """Cancel what SLURM has of this sweep that its record does not know of.

    The sweep was killed between SLURM's taking the jobs and our writing that down. Which run each of them
    would do nobody can tell; those runs are submitted again, and go on from what they have saved.
    """
    from submitit.core.utils import JobPaths

    known = {job.job_id for job in sweep.jobs}
    options = _slurm_settings(waiting[0])
    # Batch scripts lie there: %j and the like are known behind the submission only.
    folder = JobPaths.get_first_id_independent_folder(options.submitit_folder)
    unknown = [job_id for job_id in slurm.submitted_from(folder) if job_id not in known]
    if not unknown:
        return
    names = ", ".join(unknown)
    print(
        f"SLURM has jobs of this sweep that its record does not know of, since it was killed while it "
        f"submitted them: {names}; they are cancelled",
        flush=True,
    )
    slurm.cancel(unknown)


def _still_there(waiting: Sequence[Planned]) -> dict[int, Any]:
    """Jobs of an earlier start of this sweep that SLURM has still to do, by the run's number."""
    import submitit

    known = {plan.job.job_id: plan for plan in waiting if plan.job.job_id is not None}
    if not known:
        return {}
    found: dict[int, Any] = {}
    for job_id, seen in slurm.states(list(known)).items():
        if seen.state in slurm.OVER:
            continue
        plan = known[job_id]
        options = _slurm_settings(plan)
        tasks = range(options.tasks_per_node * options.nodes)
        found[plan.job.number] = submitit.SlurmJob(options.submitit_folder, job_id, list(tasks))
        print(f"  #{plan.job.number}  is job {job_id} of SLURM already: waited for", flush=True)
    return found


def _submit(launcher: Any, group: Sequence[Planned]) -> Sequence[Any]:
    import submitit

    options = _slurm_settings(group[0])
    executor = submitit.AutoExecutor(
        folder=options.submitit_folder,
        cluster="slurm",
        slurm_max_num_timeout=options.max_num_timeout,
    )
    executor.update_parameters(**options.for_submitit())
    return executor.map_array(launcher, *zip(*map(arguments, group), strict=True))


def _watch(sweep: Sweep, plans: dict[int, Planned], jobs: dict[int, Any]) -> None:
    """Wait for jobs of SLURM: for their results, or for SLURM's word that they have ended without one.

    SLURM is asked by squeue. What submitit asks, sacct, knows nothing on a cluster without accounting.
    """
    doubted: dict[int, float] = {}
    left = dict(jobs)
    while left:
        time.sleep(_slurm_settings(plans[next(iter(left))]).poll_s)
        sweep.keep(changed=False)
        try:
            states = slurm.states([job.job_id for job in left.values()])
        except slurm.Unreachable as error:
            logger.warning("%s; the jobs are waited for", error)
            continue
        for number, job in list(left.items()):
            plan, seen = plans[number], states[job.job_id]
            before = dataclasses.replace(plan.job)
            if _has_result(job):
                take_result(plan, job)
            elif seen.state in slurm.OVER:
                since = doubted.setdefault(number, time.monotonic())
                if time.monotonic() - since < _GRACE:
                    continue
                _ended_without_result(plan, seen, job)
            else:
                doubted.pop(number, None)
                _goes_on(plan, seen)
            if plan.job.ended:
                del left[number]
                announce(plan.job)
            if plan.job != before:
                sweep.keep()


def _has_result(job: Any) -> bool:
    """Whether it is known how the run has ended: of all processes, or that the first one has failed.

    The others may never hear of that, and wait for it.
    """
    left = [job.task(i).paths.result_pickle.exists() for i in range(job.num_tasks)]
    return all(left) or (left[0] and _has_failed(job.task(0)))


def _has_failed(task: Any) -> bool:
    try:
        return task.exception() is not None
    except Exception:  # what cannot be read says nothing yet
        return False


def _goes_on(plan: Planned, seen: slurm.Seen) -> None:
    if seen.state == "RUNNING":
        plan.starts()
        plan.job.why = ""
    else:
        plan.job.state, plan.job.why = "submitted", f"{seen.state} {seen.reason}".strip()


def _ended_without_result(plan: Planned, seen: slurm.Seen, job: Any) -> None:
    if job.task(0).paths.result_pickle.exists():  # another process of the run has left none
        take_result(plan, job)
        return
    state = slurm.ENDED.get(seen.state, "failed")
    said = f"SLURM: {seen.state} {seen.reason}".strip()
    if state in ("cancelled", "timed out"):
        plan.ends(state, said)
    else:
        plan.fails(f"{said}, no result; see {job.task(0).paths.stdout}")
