"""The runs of a sweep, started and waited for: here, on this machine, or on a cluster.

A run that has finished before is not run again, one that was interrupted goes on, and one that fails
leaves the others alone. What becomes of each is written into the sweep's record as it happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

from gfn_runner.commandline import check_config
from gfn_runner.config import AUTO, RunConfig
from gfn_runner.errors import UserError
from gfn_runner.report.headline import headline_numbers, optimized_value
from gfn_runner.resuming import finished_metrics, held
from gfn_runner.sweeps import slurm
from gfn_runner.sweeps.check import checked_for, launcher_settings
from gfn_runner.sweeps.record import Job, State, Sweep, log_length, reason
from gfn_runner.sweeps.settings import LocalSettings, SlurmSettings

logger = logging.getLogger(__name__)
_GRACE = (
    15  # seconds in which the result of a job that has ended may still come over a slow file system
)
_PATIENCE = 300  # seconds in which runs that are told to end may finish their step and save
_SIDE = ("hydra.sweep.dir=", "hydra.mode=", "resume=")
_current: list[Sweep] = []


class Refused(SystemExit):
    """Nothing of the sweep is started: a mistake shows that the command line alone does not tell."""

    def __init__(self, error: UserError):
        super().__init__(2)
        self.error = error


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
            metrics = finished_metrics(self.config, self.folder)
            self.job.metrics = headline_numbers(self.config.task.headline, metrics or {})
            if value is not None and self.config.optimized_metric is not None:
                self.job.metrics = {self.config.optimized_metric: value, **self.job.metrics}

    def fails(self, why: str) -> None:
        """The run has ended badly; ``why`` counts where its log gives no reason."""
        state: State = "timed out" if "timed-out too many times" in why else "failed"
        self.ends(state, reason(self.folder, self.logged) or why)


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
        Refused: if the sweep's folder holds other runs, or another process is at this sweep.
    """
    setup_globals()
    folder = Path(str(launcher.config.hydra.sweep.dir))
    with contextlib.ExitStack() as stack:
        try:
            # Of two processes each would submit every run.
            stack.enter_context(held(folder))
        except UserError as error:
            raise Refused(error) from None
        planned = _brought_to_their_end(launcher, folder, job_overrides, first)
    return [
        JobReturn(
            overrides=plan.overrides, status=JobStatus.COMPLETED, _return_value=plan.job.value
        )
        for plan in planned
    ]


def _brought_to_their_end(
    launcher: Any, folder: Path, job_overrides: Sequence[Sequence[str]], first: int
) -> list[Planned]:
    try:
        sweep = Sweep.read(folder)
        planned = [_planned(launcher, list(o), first + i) for i, o in enumerate(job_overrides)]
        for plan, job in zip(planned, sweep.plan([plan.job for plan in planned]), strict=True):
            plan.job = job
        waiting = _unfinished(planned)
    except UserError as error:
        raise Refused(error) from None
    # As they were given: hydra.sweep.subdir=seed${seed} is another name for each job.
    given: Any = OmegaConf.to_container(launcher.config.hydra.overrides, resolve=False)
    sweep.overrides = [
        line for line in (*given["hydra"], *given["task"]) if not line.lstrip("+").startswith(_SIDE)
    ]
    _current[:] = [sweep]
    sweep.write()
    _say(sweep, planned, waiting)
    if waiting:
        options: Any = OmegaConf.to_container(waiting[0].composed.hydra.launcher, resolve=True)
        settings = launcher_settings(options)
        if isinstance(settings, SlurmSettings):
            _on_slurm(launcher, sweep, waiting)
        elif isinstance(settings, LocalSettings):
            _on_this_machine(launcher, sweep, waiting, settings)
        else:
            _here(launcher, sweep, waiting)
    return planned


def _planned(launcher: Any, overrides: list[str], number: int) -> Planned:
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
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed])
    lines = [line for line in overrides if not line.lstrip("+").startswith((*_SIDE, "hydra."))]
    with checked_for(composed.hydra.launcher._target_):
        config = check_config(own, list(composed.hydra.overrides.task))
    folder = Path(str(composed.hydra.sweep.dir)) / subdir
    return Planned(Job(number, lines, subdir), overrides, composed, config, folder)


def _unfinished(planned: Sequence[Planned]) -> list[Planned]:
    """Those that are to be run; the others get their result."""
    waiting, problems = [], []
    for plan in planned:
        try:
            metrics = finished_metrics(plan.config, plan.folder)
            if metrics is not None:
                plan.job.again = False
                headline = plan.config.task.headline
                value = optimized_value(plan.config.optimized_metric, headline, metrics)
                plan.ends("ok", value=value)
                continue
        except UserError as error:
            problems += error.problems
        plan.logged = log_length(plan.folder)
        waiting.append(plan)
    if problems:
        raise UserError(problems)
    return waiting


def _say(sweep: Sweep, planned: Sequence[Planned], waiting: Sequence[Planned]) -> None:
    finished = len(planned) - len(waiting)
    before = f", {finished} have finished before" if finished else ""
    print(f"{len(waiting)} runs to do{before}", flush=True)
    for plan in waiting:
        print(f"  #{plan.job.number}  {' '.join(plan.job.beside(sweep.common))}", flush=True)


def _announce(plan: Planned) -> None:
    job = plan.job
    print(f"  #{job.number}  {job.state}{': ' if job.why else ''}{job.why}", flush=True)


# -- here ---------------------------------------------------------------------------------------


def _here(launcher: Any, sweep: Sweep, waiting: Sequence[Planned]) -> None:
    hydra = launcher.config.hydra
    for plan in waiting:
        plan.starts()
        sweep.write()
        try:
            done = run_job(
                hydra_context=launcher.hydra_context,
                task_function=launcher.task_function,
                config=plan.composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except BaseException:
            plan.ends("interrupted")
            sweep.write()
            raise
        configure_log(hydra.hydra_logging, hydra.verbose)
        if done.status == JobStatus.COMPLETED:
            plan.ends("ok", value=done.return_value)
        else:
            plan.fails(repr(done._return_value))
        sweep.write()
        _announce(plan)


# -- through submitit ---------------------------------------------------------------------------


def _arguments(plan: Planned) -> tuple[Any, ...]:
    """What hydra-submitit-launcher hands to a job."""
    number = plan.job.number
    return plan.overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state()


def _takes_result(plan: Planned, job: Any) -> None:
    """The end of a job that has left a result: what the run returned, or what it raised."""
    try:
        plan.ends("ok", value=job.task(0).result().return_value)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip() and set(line) != {"-"}]
        # Behind the traceback submitit says where its logs are.
        said = [line for line in lines if "Error" in line or "timed-out" in line]
        plan.fails((said or lines or [repr(error)])[-1].strip())


def _on_this_machine(
    launcher: Any, sweep: Sweep, waiting: Sequence[Planned], options: LocalSettings
) -> None:
    """Some jobs at a time; each has a place, and GPUs that belong to the place."""
    left, running = list(waiting), dict[int, tuple[Planned, Any]]()
    try:
        while left or running:
            for place in range(options.at_once):
                if left and place not in running:
                    plan = left.pop(0)
                    plan.starts()
                    running[place] = plan, _start_process(launcher, plan, options, place)
                    plan.job.job_id = running[place][1].job_id
                    sweep.write()
            time.sleep(options.poll_s)
            for place, (plan, job) in list(running.items()):
                if job.done():
                    del running[place]
                    if job.task(0).paths.result_pickle.exists():
                        _takes_result(plan, job)
                    else:
                        plan.fails(
                            f"its process has ended without a result; see {job.paths.stdout}"
                        )
                    sweep.write()
                    _announce(plan)
    except BaseException:
        _stop([job for _, job in running.values()])
        for plan, _ in running.values():
            plan.ends("interrupted")
        sweep.write()
        raise


def _start_process(launcher: Any, plan: Planned, options: LocalSettings, place: int) -> Any:
    import submitit

    executor = submitit.LocalExecutor(folder=options.submitit_folder)
    gpus = options.gpus_per_job
    executor.update_parameters(
        timeout_min=options.timeout_min,
        signal_delay_s=options.signal_delay_s,
        gpus_per_node=gpus,
        visible_gpus=gpus_of(place, gpus),
        stderr_to_stdout=True,
    )
    with _unhurried():
        return executor.submit(launcher, *_arguments(plan))


def gpus_of(place: int, number: int) -> tuple[int, ...]:
    """Numbers of the GPUs that belong to a place, of those that this process sees."""
    chosen = range(place * number, (place + 1) * number)
    seen = [
        name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.isdigit()
    ]
    return tuple(int(seen[i]) for i in chosen) if seen else tuple(chosen)


@contextlib.contextmanager
def _unhurried() -> Iterator[None]:
    """Processes that are started within it do not end at once with Ctrl-C: a run saves first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(jobs: Sequence[Any]) -> None:
    """Tell runs to save and end, and wait for that."""
    if not jobs:
        return
    print("gfn_runner: the runs save and end; a moment", flush=True)
    with _unhurried():
        for job in jobs:
            job._process.send_signal(signal.SIGTERM)  # submitit sends no other one than SIGINT
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and not all(job.done() for job in jobs):
            time.sleep(0.5)
    for job in jobs:
        if not job.done():
            logger.warning("process %s has not ended", job.job_id)


def _on_slurm(launcher: Any, sweep: Sweep, waiting: Sequence[Planned]) -> None:
    """Submit what SLURM does not have yet, and wait for all."""
    watched = _still_there(waiting)
    groups: dict[str, list[Planned]] = {}
    for plan in waiting:
        if plan.job.number not in watched:
            groups.setdefault(repr(_slurm_settings(plan)), []).append(plan)
    for group in groups.values():
        # An array has one shape: runs of one and of two GPUs are two arrays.
        for plan, job in zip(group, _submit(launcher, group), strict=True):
            plan.job.job_id, plan.job.state = job.job_id, "submitted"
            watched[plan.job.number] = job
        sweep.write()
    ids = ", ".join(dict.fromkeys(job.job_id.split("_")[0] for job in watched.values()))
    print(f"submitted: SLURM job {ids}; logs are in {sweep.folder / '.submitit'}", flush=True)
    _watch(sweep, {plan.job.number: plan for plan in waiting}, watched)


def _slurm_settings(plan: Planned) -> SlurmSettings:
    options: Any = OmegaConf.to_container(plan.composed.hydra.launcher, resolve=True)
    settings = launcher_settings(options)
    assert isinstance(settings, SlurmSettings)
    return settings


def _still_there(waiting: Sequence[Planned]) -> dict[int, Any]:
    """Jobs of an earlier start of this sweep that SLURM has still to do, by the run's number."""
    import submitit

    known = {plan.job.job_id: plan for plan in waiting if plan.job.job_id is not None}
    if not known:
        return {}
    found: dict[int, Any] = {}
    for job_id, seen in slurm.states(list(known)).items():
        if seen.state in slurm.ENDED or seen.state == slurm.GONE:
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
    return executor.map_array(launcher, *zip(*map(_arguments, group), strict=True))


def _watch(sweep: Sweep, plans: dict[int, Planned], jobs: dict[int, Any]) -> None:
    """Wait for jobs of SLURM: for their results, or for SLURM's word that they have ended without one.

    SLURM is asked by squeue. What submitit asks, sacct, knows nothing on a cluster without accounting.
    """
    doubted: dict[int, float] = {}
    left = dict(jobs)
    while left:
        time.sleep(_slurm_settings(plans[next(iter(left))]).poll_s)
        try:
            states = slurm.states([job.job_id for job in left.values()])
        except slurm.Unreachable as error:
            logger.warning("%s; the jobs are waited for", error)
            continue
        for number, job in list(left.items()):
            plan, seen = plans[number], states[job.job_id]
            before = dataclasses.replace(plan.job)
            if _has_result(job):
                _takes_result(plan, job)
            elif seen.state in slurm.ENDED or seen.state == slurm.GONE:
                since = doubted.setdefault(number, time.monotonic())
                if time.monotonic() - since < _GRACE:
                    continue
                _ended_without_result(plan, seen, job)
            else:
                doubted.pop(number, None)
                _goes_on(plan, seen)
            if plan.job.ended:
                del left[number]
                _announce(plan)
            if plan.job != before:
                sweep.write()


def _has_result(job: Any) -> bool:
    return all(job.task(i).paths.result_pickle.exists() for i in range(job.num_tasks))


def _goes_on(plan: Planned, seen: slurm.Seen) -> None:
    if seen.state == "RUNNING":
        plan.starts()
        plan.job.why = ""
    else:
        plan.job.state, plan.job.why = "submitted", f"{seen.state} {seen.reason}".strip()


def _ended_without_result(plan: Planned, seen: slurm.Seen, job: Any) -> None:
    if job.task(0).paths.result_pickle.exists():  # another process of the run has left none
        _takes_result(plan, job)
        return
    state = slurm.ENDED.get(seen.state, "failed")
    said = f"SLURM: {seen.state} {seen.reason}".strip()
    if state in ("cancelled", "timed out"):
        plan.ends(state, said)
    else:
        plan.fails(f"{said}, no result; see {job.task(0).paths.stdout}")
