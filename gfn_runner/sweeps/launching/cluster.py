"""Runs of a sweep as SLURM jobs: submitting, recovering after a restart, and waiting for results.

hydra-submitit-launcher waits through submitit, which relies on sacct: without accounting it waits forever
for a lost job. It also raises the first failure, which hides the others.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.runtime.sweep_record import Sweep
from gfn_runner.sweeps import slurm
from gfn_runner.sweeps.check import executor_parameters
from gfn_runner.sweeps.launching.plan import Plan
from gfn_runner.sweeps.launching.signals import defer_signals

logger = logging.getLogger(__name__)
# Seconds after a job's end in which its result may still arrive over a slow file system.
_GRACE = 15


def run_on_slurm(launcher: Any, sweep: Sweep, waiting: Sequence[Plan]) -> None:
    """Submit the jobs that SLURM does not have yet, and wait for all of them.

    Jobs that SLURM refuses are marked as failed with its message, without affecting the others.

    Raises:
        UserError: if SLURM cannot be asked which jobs it already has; nothing is submitted in that case.
    """
    try:
        _cancel_unknown(sweep, waiting[0].options.submitit_folder)
        jobs = _still_there(waiting)
    except slurm.Unreachable as error:
        raise UserError.one(
            "hydra/launcher",
            f"SLURM does not report the jobs of this sweep ({error})",
            "a cluster that is up",
            f"python -m gfn_runner -m resume={sweep.folder}",
        ) from None
    _submit_all(launcher, sweep, [plan for plan in waiting if plan.job.number not in jobs], jobs)
    _wait(sweep, {plan.job.number: plan for plan in waiting}, jobs)


def _cancel_unknown(sweep: Sweep, submitit_folder: str) -> None:
    """Cancel jobs of this sweep in SLURM's queue that are missing in its record.

    The sweep was killed after SLURM accepted the jobs and before they were recorded. It is unknown which run
    each job would execute; those runs are submitted again and resume from their checkpoints.
    """
    from submitit.core.utils import JobPaths

    known = {job.job_id for job in sweep.jobs}
    # Folder of the batch scripts; %j and similar placeholders are known only after submission.
    folder = JobPaths.get_first_id_independent_folder(submitit_folder)
    unknown = [job_id for job_id in slurm.submitted_from(folder) if job_id not in known]
    if unknown:
        print(
            "SLURM has jobs that the record of this sweep lacks, since the sweep was killed while it "
            f"submitted them: {', '.join(unknown)}; they are cancelled",
            flush=True,
        )
        slurm.cancel(unknown)


def _still_there(waiting: Sequence[Plan]) -> dict[int, Any]:
    """Return the unfinished jobs of an earlier start of this sweep, by run number."""
    import submitit

    known = {plan.job.job_id: plan for plan in waiting if plan.job.job_id is not None}
    found: dict[int, Any] = {}
    for job_id, seen in slurm.states(list(known)).items() if known else ():
        if seen.state not in slurm.OVER:
            plan, options = known[job_id], known[job_id].options
            tasks = list(range(options.tasks_per_node * options.nodes))
            found[plan.job.number] = submitit.SlurmJob(options.submitit_folder, job_id, tasks)
            print(
                f"  #{plan.job.number}  is already SLURM job {job_id}: waiting for it", flush=True
            )
    return found


def _submit_all(launcher: Any, sweep: Sweep, plans: Sequence[Plan], jobs: dict[int, Any]) -> None:
    """Submit runs, and add their jobs to ``jobs``."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    groups: dict[str, list[Plan]] = {}
    for plan in plans:  # runs with different resources need separate arrays
        groups.setdefault(repr(plan.options), []).append(plan)
    refused = False
    for group in groups.values():
        with defer_signals():  # every accepted job gets recorded
            try:
                for plan, job in zip(group, _submit(launcher, group), strict=True):
                    plan.job.job_id, plan.job.state = job.job_id, "submitted"
                    jobs[plan.job.number] = job
            except (FailedJobError, FailedSubmissionError, OSError) as error:
                refused = True
                for plan in group:
                    plan.fails(f"could not be submitted: {slurm.sbatch_message(str(error))}")
            sweep.keep()
    if jobs:
        ids = ", ".join(dict.fromkeys(job.job_id.split("_")[0] for job in jobs.values()))
        print(f"submitted: SLURM job {ids}; logs are in {sweep.folder / '.submitit'}", flush=True)
    if refused:
        then = "waiting for the others" if jobs else "no run was submitted"
        print(f"gfn_runner: {then}; -m resume={sweep.folder} tries again", flush=True)


def _submit(launcher: Any, group: Sequence[Plan]) -> Sequence[Any]:
    import submitit

    options = group[0].options
    executor = submitit.AutoExecutor(
        folder=options.submitit_folder,
        cluster="slurm",
        slurm_max_num_timeout=options.max_num_timeout,
    )
    executor.update_parameters(**executor_parameters(options))
    return executor.map_array(launcher, *zip(*(plan.arguments for plan in group), strict=True))


def _wait(sweep: Sweep, plans: dict[int, Plan], jobs: dict[int, Any]) -> None:
    """Wait until each job has a result, or until SLURM says that it ended without one."""
    ended: dict[int, float] = {}  # time at which a job without result was first seen as ended
    left = dict(jobs)
    while left:
        time.sleep(plans[next(iter(left))].options.poll_s)
        sweep.keep(changed=False)
        try:
            states = slurm.states([job.job_id for job in left.values()])
        except slurm.Unreachable as error:
            logger.warning("%s; still waiting for the jobs", error)
            continue
        for number, job in list(left.items()):
            plan, seen = plans[number], states[job.job_id]
            before = dataclasses.replace(plan.job)
            if _has_result(job):
                plan.takes_result(job)
            elif seen.state == "RUNNING":
                plan.starts()
            elif seen.state not in slurm.OVER:
                plan.job.state, plan.job.why = "submitted", f"{seen.state} {seen.reason}".strip()
            elif time.monotonic() - ended.setdefault(number, time.monotonic()) >= _GRACE:
                _ends_without_result(plan, seen, job)
            if seen.state not in slurm.OVER:
                ended.pop(number, None)  # requeued
            if plan.job.ended:
                del left[number]
            if plan.job != before:
                sweep.keep()


def _has_result(job: Any) -> bool:
    """Return whether the outcome is known: all processes have a result, or the first one has failed.

    In the latter case, the others may never notice and wait for it.
    """
    left = [job.task(i).paths.result_pickle.exists() for i in range(job.num_tasks)]
    if all(left) or not left[0]:
        return all(left)
    try:
        return job.task(0).exception() is not None
    except Exception:  # the file is still incomplete
        return False


def _ends_without_result(plan: Plan, seen: slurm.JobState, job: Any) -> None:
    state = slurm.ENDED.get(seen.state, "failed")
    said = f"SLURM: {seen.state} {seen.reason}".strip()
    if job.task(0).paths.result_pickle.exists():  # another process of the run left no result
        plan.takes_result(job)
    elif state in ("cancelled", "timed out"):
        plan.ends(state, said)
    else:
        plan.fails(f"{said}, no result; see {job.task(0).paths.stdout}")
