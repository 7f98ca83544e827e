"""Runs of a sweep in processes of their own on this machine, some at a time, by submitit."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gfn_runner.launching.planned import Planned, announce, arguments, take_result
from gfn_runner.sweeps.record import Sweep
from gfn_runner.sweeps.settings import LocalSettings

logger = logging.getLogger(__name__)
_PATIENCE = 300  # seconds in which runs that are told to end may finish their step and save


def on_this_machine(
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
                        take_result(plan, job)
                    else:
                        plan.fails(
                            f"its process has ended without a result; see {job.paths.stdout}"
                        )
                    sweep.write()
                    announce(plan)
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
        return executor.submit(launcher, *arguments(plan))


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
