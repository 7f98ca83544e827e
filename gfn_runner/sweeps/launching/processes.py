"""Runs of a sweep in processes of their own on this machine, some at a time, by submitit."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

from gfn_runner.runtime.environment import threads_each
from gfn_runner.sweeps.launching.planned import Planned, announce, arguments, take_result
from gfn_runner.sweeps.launching.signals import deaf, undisturbed
from gfn_runner.sweeps.record import State, Sweep
from gfn_runner.sweeps.settings import LocalSettings

logger = logging.getLogger(__name__)
_PATIENCE = 300  # seconds in which runs that are told to end may finish their step and save
_AGAIN = 30  # seconds after which those that have not ended are told again
_POLL = 0.5


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
                    try:
                        with undisturbed():  # what has started is known, and so will be stopped
                            plan.starts()
                            running[place] = plan, _start_process(launcher, plan, options, place)
                            plan.job.job_id = running[place][1].job_id
                    except OSError as error:
                        plan.fails(f"its process cannot be started: {error}")
                        announce(plan.job)
                    sweep.keep()
            time.sleep(options.poll_s)
            sweep.keep(changed=False)
            for place, (plan, job) in list(running.items()):
                if job.done():
                    del running[place]
                    stdout = job.paths.stdout
                    _ends(
                        plan, job, "failed", f"its process has ended without a result; see {stdout}"
                    )
                    sweep.keep()
                    announce(plan.job)
    except BaseException:
        _stop([job for _, job in running.values()])
        for plan, job in running.values():
            _ends(plan, job, "interrupted")
        sweep.keep()
        raise


def _ends(plan: Planned, job: Any, state: State, why: str = "") -> None:
    """As its result says; in that state if it has left none."""
    if job.task(0).paths.result_pickle.exists():
        take_result(plan, job)
    elif state == "failed":
        plan.fails(why)
    else:
        plan.ends(state, why)


def _start_process(launcher: Any, plan: Planned, options: LocalSettings, place: int) -> Any:
    import submitit

    executor = submitit.LocalExecutor(folder=options.submitit_folder)
    gpus = options.gpus_per_job
    threads = str(threads_each(options.at_once * plan.config.trainer.devices))
    executor.update_parameters(
        timeout_min=options.timeout_min,
        signal_delay_s=options.signal_delay_s,
        gpus_per_node=gpus,
        visible_gpus=gpus_of(place, gpus),
        stderr_to_stdout=True,
    )
    with _environment(OMP_NUM_THREADS=threads):
        return executor.submit(launcher, *arguments(plan))


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Within it a process that is started has these variables, unless they are set already."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def gpus_of(place: int, number: int) -> tuple[int, ...]:
    """Numbers of the GPUs that belong to a place, of those that this process sees."""
    chosen = range(place * number, (place + 1) * number)
    seen = [
        name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.isdigit()
    ]
    return tuple(int(seen[i]) for i in chosen) if seen else tuple(chosen)


def _stop(jobs: Sequence[Any]) -> None:
    """Tell runs to save and end, and wait for that; none is left behind.

    A run that trains saves behind its step; any other one ends at once. Told again in between is whatever
    has missed it (a process that has only just begun), and what does not end is killed.
    """
    if not jobs:
        return
    with deaf():
        with contextlib.suppress(OSError):  # the terminal may be gone, and that is why
            print("gfn_runner: the runs save and end; a moment", flush=True)
        began = time.monotonic()
        told = -math.inf
        while (now := time.monotonic()) - began < _PATIENCE and not all(job.done() for job in jobs):
            if now - told >= _AGAIN:
                told = now
                for job in jobs:
                    job._process.send_signal(signal.SIGTERM)  # submitit sends none but SIGINT
            time.sleep(_POLL)
        for job in jobs:
            if not job.done():
                logger.warning(
                    "process %s has not ended within %d seconds: killed", job.job_id, _PATIENCE
                )
                job._process.kill()  # its run ends with it
                job._process.wait()
