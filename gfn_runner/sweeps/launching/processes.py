"""Runs of a sweep on this machine: in this process, or several at a time in submitit processes."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from gfn_runner.distributed.launch import exit_with_parent
from gfn_runner.runtime.environment import default_variables, threads_per_process
from gfn_runner.runtime.sweep_record import Sweep
from gfn_runner.sweeps.launching.plan import Plan
from gfn_runner.sweeps.launching.signals import defer_signals, ignore_termination_signals

logger = logging.getLogger(__name__)
_PATIENCE = 300  # seconds for interrupted runs to finish their step and save
_AGAIN = 30  # seconds until those still running get the signal again
_POLL = 0.5


def run_in_process(launcher: Any, sweep: Sweep, waiting: Sequence[Plan]) -> None:
    """Execute runs in this process, one after another; a failing run does not stop the others."""
    hydra = launcher.config.hydra
    for plan in waiting:
        plan.starts()
        sweep.keep()
        alone = plan.config.trainer.processes.number == 1
        try:
            value = (_run if alone else _run_in_child)(launcher, plan.composed)
        except Exception as error:
            plan.fails(repr(error))
        except BaseException:
            plan.ends("interrupted")
            sweep.keep()
            raise
        else:
            plan.ends("ok", value=value)
        configure_log(hydra.hydra_logging, hydra.verbose)
        sweep.keep()


def _run_in_child(launcher: Any, composed: DictConfig) -> Any:
    """Execute a multi-process run in a child process. If one of its ranks fails, the others exit at once with
    ``os._exit``, so the sweep's own process must not be one of them.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=exit_with_parent) as pool:
        try:
            return pool.submit(_run, launcher, composed).result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # saves a checkpoint after its step
            raise


def _run(launcher: Any, composed: DictConfig) -> Any:
    setup_globals()
    return launcher.run(composed).return_value


def run_in_processes(launcher: Any, sweep: Sweep, waiting: Sequence[Plan]) -> None:
    """Execute ``n_jobs`` runs at a time (submitit would start all), each in a slot with its own GPUs."""
    options = waiting[0].options
    left, running = list(waiting), dict[int, tuple[Plan, Any]]()
    try:
        while left or running:
            for slot in range(options.n_jobs):
                if left and slot not in running:
                    plan = left.pop(0)
                    try:
                        with defer_signals():  # a started process is known and gets stopped
                            plan.starts()
                            running[slot] = plan, _start_process(launcher, plan, options, slot)
                            plan.job.job_id = running[slot][1].job_id
                    except OSError as error:
                        plan.fails(f"its process cannot be started: {error}")
                    sweep.keep()
            time.sleep(options.poll_s)
            sweep.keep(changed=False)
            for slot, (plan, job) in list(running.items()):
                if job.done():
                    del running[slot]
                    if job.task(0).paths.result_pickle.exists():
                        plan.takes_result(job)
                    else:
                        plan.fails(
                            f"its process has ended without a result; see {job.paths.stdout}"
                        )
                    sweep.keep()
    except BaseException:
        _stop([job for _, job in running.values()])
        for plan, job in running.values():
            if job.task(0).paths.result_pickle.exists():
                plan.takes_result(job)
            else:
                plan.ends("interrupted")
        sweep.keep()
        raise


def _start_process(launcher: Any, plan: Plan, options: Any, slot: int) -> Any:
    import submitit

    executor = submitit.LocalExecutor(folder=options.submitit_folder)
    gpus = options.gpus_per_node or 0
    threads = str(threads_per_process(options.n_jobs * plan.config.trainer.processes.devices))
    executor.update_parameters(
        timeout_min=options.timeout_min,
        signal_delay_s=options.signal_delay_s,
        gpus_per_node=gpus,
        visible_gpus=gpus_of(slot, gpus),
        stderr_to_stdout=options.stderr_to_stdout,
    )
    with default_variables(OMP_NUM_THREADS=threads):
        return executor.submit(launcher, *plan.arguments)


def gpus_of(slot: int, number: int) -> tuple[int, ...]:
    """Return the indices of the GPUs assigned to a slot, out of those visible to this process."""
    chosen = range(slot * number, (slot + 1) * number)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    seen = [name for name in names if name.isdigit()]
    return tuple(int(seen[i]) for i in chosen) if seen else tuple(chosen)


def _stop(jobs: Sequence[Any]) -> None:
    """Interrupt runs and wait for them to save and exit; leave none running.

    A training run saves after its current step; any other run exits at once. A process that has only just
    started may miss the signal, so it is sent again; a process that does not exit is killed.
    """
    if not jobs:
        return
    with ignore_termination_signals():
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("gfn_runner: waiting for the runs to save and end", flush=True)
        began, sent = time.monotonic(), -math.inf
        while (now := time.monotonic()) - began < _PATIENCE and not all(job.done() for job in jobs):
            if now - sent >= _AGAIN:
                sent = now
                for job in jobs:
                    job._process.send_signal(signal.SIGTERM)  # submitit can only send SIGINT
            time.sleep(_POLL)
        for job in jobs:
            if not job.done():
                logger.warning(
                    "process %s has not ended within %d seconds: killed", job.job_id, _PATIENCE
                )
                job._process.kill()  # its run dies with it
                job._process.wait()
