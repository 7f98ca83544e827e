"""Validation of launcher options before anything is submitted, by asking SLURM itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated_dataclass

from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.model_config import ELSEWHERE
from gfn_runner.runtime.targets import validated
from gfn_runner.sweeps import slurm

KEY = "hydra.launcher"
PLUGINS = "hydra_plugins.gfn_runner_launchers"
BASIC, LOCAL, SLURM = (f"{PLUGINS}.{name}Launcher" for name in ("Basic", "Local", "Slurm"))
_AtLeastOne = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]
# Options that SLURM may be refusing.
_ASKED = (
    "partition", "account", "qos", "constraint", "exclude", "gres", "nodes", "tasks_per_node",
    "cpus_per_task", "gpus_per_node", "mem_gb", "timeout_min", "additional_parameters",
)  # fmt: skip


@functools.cache
def _schemas() -> dict[str, type]:
    """Return the options of each launcher: those of hydra-submitit-launcher and a few added ones."""
    from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf

    @validated_dataclass(config=ConfigDict(extra="forbid"))
    class LocalOptions(LocalQueueConf):
        timeout_min: _AtLeastOne = 10080
        signal_delay_s: _AtLeastOne = 120
        n_jobs: _AtLeastOne = 2
        poll_s: _Positive = 1.0

    @validated_dataclass(config=ConfigDict(extra="forbid"))
    class SlurmOptions(SlurmQueueConf):
        # Not {}: Hydra allows no new keys in a dictionary, but a dictionary in place of null.
        additional_parameters: dict[str, Any] | None = None
        timeout_min: _AtLeastOne = 240
        signal_delay_s: _AtLeastOne = 120
        poll_s: _Positive = 5.0

    return {LOCAL: LocalOptions, SLURM: SlurmOptions}


def launcher_options(given: Mapping[str, Any]) -> Any:
    """Validate the options of a launcher; return a dataclass, or ``None`` for a launcher without options.

    Raises:
        UserError: lists all options that are unknown or have the wrong type; or if packages are missing.
    """
    values = dict(given)
    target = values.pop("_target_", "")
    if target not in (LOCAL, SLURM):
        if target == BASIC and values:
            known = "none with hydra/launcher=basic; local, slurm, slurm_gpu have some"
            raise UserError([Problem(f"{KEY}.{key}", "unknown key", known) for key in values])
        return None
    if find_spec("submitit") is None or find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise UserError.one(
            "hydra/launcher",
            "its packages are not installed",
            "hydra/launcher=basic, or, with the extra packages, local, slurm, slurm_gpu",
            "pip install 'gfn-runner[slurm]'",
        )
    return validated(KEY, values, _schemas()[target])


@contextlib.contextmanager
def checked_for(target: str) -> Iterator[None]:
    """Within the context, check configs for the machine on which the launcher class ``target`` runs them."""
    before = ELSEWHERE.set(target == SLURM)
    try:
        yield
    finally:
        ELSEWHERE.reset(before)


def launcher_problems(
    given: Mapping[str, Any], processes: Processes, n_runs: int = 1
) -> Iterator[Problem]:
    """Yield the problems of a launcher's options, without submitting anything.

    Args:
        n_runs: number of runs that will be submitted together.
    """
    try:
        options = launcher_options(given)
    except UserError as error:
        yield from error.problems
        return
    if options is None:
        return
    if options.signal_delay_s >= 60 * options.timeout_min:
        yield Problem(
            f"{KEY}.signal_delay_s",
            f"given {options.signal_delay_s}, the whole time limit of {options.timeout_min} minutes",
            f"below {60 * options.timeout_min}",
        )
    if options.gpus_per_node and options.gpus_per_node < processes.devices:
        yield Problem(
            f"{KEY}.gpus_per_node",
            f"given {options.gpus_per_node}",
            f"at least trainer.devices = {processes.devices}",
            f"{KEY}.gpus_per_node={processes.devices}",
        )
    if given["_target_"] == LOCAL:
        yield from _machine_problems(options, processes)
    else:
        for name, key, wanted in (
            ("tasks_per_node", "trainer.devices", processes.devices),
            ("nodes", "trainer.num_nodes", processes.nodes),
        ):
            if (value := getattr(options, name)) != wanted:
                yield Problem(f"{KEY}.{name}", f"given {value}", f"{wanted}, as {key} says")
        yield from _cluster_problems(options, n_runs)


def _machine_problems(options: Any, processes: Processes) -> Iterator[Problem]:
    if processes.nodes > 1:
        yield Problem(
            "trainer.num_nodes", f"given {processes.nodes} with hydra/launcher=local", "1"
        )
    if options.gpus_per_node:
        import torch

        found, wanted = torch.cuda.device_count(), options.n_jobs * options.gpus_per_node
        if wanted > found:
            yield Problem(
                f"{KEY}.gpus_per_node",
                f"{options.n_jobs} jobs of {options.gpus_per_node} GPUs need {wanted}; "
                f"this machine has {found}",
                f"{KEY}.n_jobs × {KEY}.gpus_per_node at most {found}",
            )


def _cluster_problems(options: Any, n_runs: int) -> Iterator[Problem]:
    try:
        found = list(_partition_problems(options))
        said = "" if found else slurm.refusal(batch_script(options, n_runs))
    except slurm.Unreachable as error:
        allowed = "a machine from which jobs can be submitted, or hydra/launcher=local"
        yield Problem("hydra/launcher", f"SLURM does not answer ({error})", allowed)
        return
    yield from found
    if said:
        given = ", ".join(
            f"{key}={value}"
            for key, value in dataclasses.asdict(options).items()
            if value and key in _ASKED
        )
        what = "a job" if n_runs == 1 else f"an array of {n_runs} jobs"
        allowed = "what a node has (sinfo -N -l)"
        if n_runs > 1:
            allowed += ", in arrays below MaxArraySize (scontrol show config)"
        yield Problem(KEY, f"SLURM refuses {what} with {given}: {said}", allowed)


def _partition_problems(options: Any) -> Iterator[Problem]:
    """Yield unknown partitions and times above every limit, for which SLURM would queue a job forever."""
    known = {partition.name: partition for partition in slurm.partitions()}
    names = options.partition.split(",") if options.partition else []
    names = names or [partition.name for partition in known.values() if partition.default]
    if not names:
        what = "missing, and this cluster has no default"
        yield Problem(f"{KEY}.partition", what, ", ".join(known))
    for name in names:
        if name not in known:
            yield Problem(f"{KEY}.partition", f"given {name!r}", ", ".join(known))
    limits = [known[name].minutes or math.inf for name in names if name in known]
    if limits and max(limits) < options.timeout_min:
        yield Problem(
            f"{KEY}.timeout_min",
            f"given {options.timeout_min} minutes, above the limit of partition {', '.join(names)}",
            f"at most {max(limits):.0f}",
        )


def executor_parameters(options: Any) -> dict[str, Any]:
    """Return the parameters of submitit's SLURM executor, without those that are not set."""
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    shared = {field.name for field in dataclasses.fields(BaseQueueConf)}
    given = dataclasses.asdict(options)
    for name in ("_target_", "submitit_folder", "max_num_timeout", "poll_s"):
        del given[name]
    # If SLURM does not bind processes to cores, each would start a thread for every core of the node.
    threads = "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
    given["setup"] = [threads, *(options.setup or ())]
    # If one process fails, the others would wait for it for hours.
    given["srun_args"] = ["--kill-on-bad-exit=1"]
    if options.cpus_per_task:
        # Since 22.05, srun does not inherit it from the job: a process would have one core.
        given["srun_args"].append(f"--cpus-per-task={options.cpus_per_task}")
    return {
        name if name in shared else f"slurm_{name}": value
        for name, value in given.items()
        if value is not None
    }


def batch_script(options: Any, n_runs: int = 1) -> str:
    """Return a batch script like submitit's; several runs become an array."""
    import submitit

    executor = submitit.AutoExecutor(cluster="slurm", folder="/tmp/%j")
    executor.update_parameters(**executor_parameters(options))
    inner: Any = executor._executor  # submitit has no public API for the following
    if n_runs > 1:
        inner.parameters["map_count"] = n_runs
    return str(inner._make_submission_file_text("true", "check"))


def sweeper_problems(target: str) -> Iterator[Problem]:
    """Yield what keeps the sweeper class ``target`` from working here."""
    if target != f"{PLUGINS}.SearchSweeper":
        return
    if find_spec("optuna") is None or find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        yield Problem(
            "hydra/sweeper",
            "the packages for a search are not installed",
            "hydra/sweeper=basic, or, with the extra packages, search",
            "pip install 'gfn-runner[search]'",
        )
