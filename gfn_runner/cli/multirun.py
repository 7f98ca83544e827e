"""Sweeps and searches: validation of all runs before the start, and the results table at the end."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from gfn_runner.cli.hooks import NoFolder, is_new, prepared_folder
from gfn_runner.config.run_config import RunConfig
from gfn_runner.data.samples import TaskData
from gfn_runner.distributed.launch import check_launcher, is_worker
from gfn_runner.errors import Problem, UserError, show
from gfn_runner.report.headline import direction_of
from gfn_runner.runtime.overrides import absolute_lines, parsed
from gfn_runner.runtime.sweep_record import RECORD, Sweep
from gfn_runner.sweeps.check import launcher_problems, sweeper_problems
from gfn_runner.sweeps.launching.plan import Plan, compose_job, validate_job

logger = logging.getLogger(__name__)


def before_multirun(config: DictConfig) -> contextlib.AbstractContextManager[None]:
    """Validate the runs of a sweep, and check that its folder is usable.

    Args:
        config: Hydra's config, including its own node. Local paths in its overrides become absolute, and
            the direction of a search is set from its metric.

    Returns:
        A context manager in which the sweep has to be executed.

    Raises:
        UserError: lists all problems.
        NoFolder: if the command needs no folder.
    """
    values = _values_of(config)
    plans = _checked_plans(config, _jobs(values, _searches(config)))
    configs, hydra = [plan.config for plan in plans], config.hydra
    if _searches(config) and hydra.sweeper.get("direction", "") is None:
        hydra.sweeper.direction = _direction(configs)
        # Recorded, since pages read it and a resumed search keeps it.
        hydra.overrides.hydra.append(f"hydra.sweeper.direction={hydra.sweeper.direction}")
    if any(run.mode != "train" for run in configs):
        raise UserError.one(
            "mode", f"given {configs[0].mode!r} with --multirun", "one run at a time"
        )
    if configs[0].dry_run:
        raise NoFolder(configs)
    for run in configs:
        check_launcher(run.trainer.processes, multirun=True)
    _check_texts(configs)
    if is_worker(configs[0].trainer.processes):
        raise NoFolder(configs)  # rank 0 creates the folders
    values_of_runs = [run.values for run in configs]
    hydra.overrides.task = absolute_lines(hydra.overrides.task, values_of_runs)
    if len(values.get("task", ())) > 1:
        hydra.runtime.choices.task = "tasks"
    folder = prepared_folder(config, "sweep", configs[0].output)
    for plan in plans:
        with read_write(plan.composed.hydra):
            plan.composed.hydra.sweep.dir = str(folder)
        plan.job.overrides = absolute_lines(plan.job.overrides, [plan.config.values])
    return sweep_under_way(folder, configs[0].writes_pages, () if _searches(config) else plans)


# -- runs ----------------------------------------------------------------------------------------


def _checked_plans(config: DictConfig, jobs: Sequence[Sequence[str]]) -> list[Plan]:
    """Compose and validate the runs, and the launcher for each kind of run."""
    loader = GlobalHydra.instance().config_loader()
    found = list(sweeper_problems(config.hydra.sweeper._target_))
    plans = []
    kinds: dict[str, list[Plan]] = {}
    loaded: dict[str, TaskData] = {}
    for number, lines in enumerate(jobs):
        job, composed = compose_job(loader, config, lines, number)
        if is_new(config.hydra.sweep):  # resolving the name would create the folder
            with read_write(composed.hydra):
                composed.hydra.sweep.dir = "."
        try:
            plan = validate_job(job, composed, loaded)
        except UserError as error:
            found += error.problems
            continue
        plans.append(plan)
        kinds.setdefault(repr((plan.launcher, plan.config.trainer.processes)), []).append(plan)
    for alike in kinds.values():
        processes = alike[0].config.trainer.processes
        at_once = _runs_at_once(config, len(alike))
        found += launcher_problems(alike[0].launcher, processes, at_once)
    if found:
        raise UserError(list(dict.fromkeys(found)))  # most problems are common to all jobs
    return plans


def _jobs(values: Mapping[str, Sequence[str]], searches: bool) -> list[list[str]]:
    """Return the overrides of all jobs; for a search, of just enough jobs to include every value."""
    if not searches:
        return [list(job) for job in itertools.product(*values.values())]
    first = {key: lines[0] for key, lines in values.items()}
    others = [{**first, key: line} for key, lines in values.items() for line in lines[1:]]
    return [list(job.values()) for job in (first, *others)]


def _runs_at_once(config: DictConfig, n_runs: int) -> int:
    """Return how many of these runs are passed to the launcher at once.

    For a resumed sweep this is unknown: some runs have finished, others are already queued.
    """
    if not is_new(config.hydra.sweep):
        with contextlib.suppress(OmegaConfBaseException):  # a name that only Hydra can resolve
            if (Path(str(config.hydra.sweep.dir)) / RECORD).is_file():
                return 1
    n_jobs = config.hydra.sweeper.get("n_jobs") if _searches(config) else n_runs
    return min(n_jobs, n_runs) if isinstance(n_jobs, int) else 1


def _searches(config: DictConfig) -> bool:
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")


def _values_of(config: DictConfig) -> dict[str, list[str]]:
    """Map every key to the overrides that set it to one of its values."""
    # Values from a config of the group sweep; the command line takes precedence.
    params = config.hydra.sweeper.get("params") or {}
    given = [f"{key}={value}" for key, value in params.items()]
    overrides = parsed([*given, *config.hydra.overrides.task])
    last = {override.get_key_element(): override for override in overrides}
    return {
        key: [f"{key}={value}" for value in _values(override, _searches(config))]
        for key, override in last.items()
    }


def _values(override: Override, searches: bool) -> list[str]:
    """Return the values that a sweep or search may give a key; for an interval, its two ends."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if override.is_discrete_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    if not searches:
        raise UserError.one(
            str(override.key_or_group),
            f"given {override.input_line!r}: a sweep needs a list of values, not an interval",
            "comma-separated values, or hydra/sweeper=search",
        )
    interval: Any = override.value()
    if interval.start > interval.end:
        raise UserError.one(
            str(override.key_or_group),
            f"given {override.input_line!r}, whose lower bound is above the upper one",
            "interval(low, high)",
        )
    return [str(interval.start), str(interval.end)]


def _direction(configs: Sequence[RunConfig]) -> str:
    """Return whether a search minimizes or maximizes its metric."""
    names = {config.optimized_metric or config.default_metric for config in configs}
    directions = {direction_of(name) for name in names}
    if "" in names or len(directions) > 1:
        minimized = f"{' and '.join(sorted(names))}, of which one is minimized"
        raise UserError.one(
            "optimized_metric",
            f"the search has {'no metric' if '' in names else minimized}",
            "a metric of metrics.json, the same for all runs",
            "optimized_metric=log_reward",
        )
    return directions.pop()


def _check_texts(configs: Sequence[RunConfig]) -> None:
    """Check the texts of every job with its tokenizer."""
    from gfn_runner.config.tokenizer_checks import check_texts  # needs transformers

    found: list[Problem] = []
    # Most jobs of a sweep share model and texts; a seed changes which examples are used, not their length.
    for run in {
        repr((c.lm, c.values["task"], c.evaluation.baseline_shots)): c for c in configs
    }.values():
        try:
            check_texts(run)
        except UserError as error:
            found += error.problems
    if found:
        raise UserError(list(dict.fromkeys(found)))


# -- end of the sweep ----------------------------------------------------------------------------


@contextlib.contextmanager
def sweep_under_way(folder: Path, pages: bool, plans: Sequence[Plan] = ()) -> Iterator[None]:
    """Context in which Hydra executes the runs; on exit, print the sweep's table and write its page.

    Args:
        plans: runs of the sweep; empty for a search.

    Raises:
        SystemExit: with status 1 if a run did not end as ``ok``, 2 if the sweep is refused, 130 on Ctrl-C.
    """
    from gfn_runner.callbacks.live_report import warn_of_errors
    from gfn_runner.report.sweep_page import write_sweep_page
    from gfn_runner.sweeps.launching.launch import InvalidSweep, current_sweep, planned
    from gfn_runner.sweeps.launching.signals import exit_on_termination
    from gfn_runner.sweeps.table import show_sweep

    done = False
    try:
        with exit_on_termination(), planned(plans):
            yield
        done = True
    except InvalidSweep as invalid:
        # A search may be refused as late as its tenth trial.
        sweep = current_sweep()
        stops = f"the sweep stops; its folder is {folder}" if sweep else "no run was started"
        show(invalid.error.problems, stops)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        sweep = current_sweep()
        if sweep is None and done:  # a resumed search had nothing left to do
            sweep = Sweep.read(folder)
            for job in sweep.jobs:
                job.again = False
        if sweep is not None and sweep.jobs:
            sweep.searches = False
            sweep.keep()
            try:
                show_sweep(sweep)
            except OSError as error:  # full disk, or closed terminal
                logger.warning("the sweep's table cannot be written: %s", error)
            if pages:
                with warn_of_errors(logger.warning):
                    write_sweep_page(folder)
    if sweep is not None and sweep.failures:
        raise SystemExit(1)
