"""Runs of a sweep one after the other, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobStatus, configure_log, run_job

from gfn_runner.sweeps.launching.planned import Planned, announce
from gfn_runner.sweeps.record import Sweep


def here(launcher: Any, sweep: Sweep, waiting: Sequence[Planned]) -> None:
    hydra = launcher.config.hydra
    for plan in waiting:
        try:
            plan.starts()
            sweep.keep()
            done = run_job(
                hydra_context=launcher.hydra_context,
                task_function=launcher.task_function,
                config=plan.composed,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except BaseException:
            plan.ends("interrupted")
            sweep.keep()
            raise
        configure_log(hydra.hydra_logging, hydra.verbose)
        if done.status == JobStatus.COMPLETED:
            plan.ends("ok", value=done.return_value)
        else:
            plan.fails(repr(done._return_value))
        sweep.keep()
        announce(plan.job)
