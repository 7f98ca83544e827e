"""Runs of a sweep one after the other, in this process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from gfn_runner.distributed.launch import exit_with_parent
from gfn_runner.runtime.sweep_record import Sweep
from gfn_runner.sweeps.launching.plan import Plan


def run_in_process(launcher: Any, sweep: Sweep, waiting: Sequence[Plan]) -> None:
    """Bring runs to their end; one that fails stops no other."""
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
    """A run of several processes. Where one of them fails the others end at once, by ``os._exit``; the
    sweep's process must not be among them.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=exit_with_parent) as pool:
        try:
            return pool.submit(_run, launcher, composed).result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()  # it saves after its step
            raise


def _run(launcher: Any, composed: DictConfig) -> Any:
    setup_globals()
    return launcher.run(composed).return_value
