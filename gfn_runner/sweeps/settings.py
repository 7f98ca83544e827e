"""Settings of the launchers: what a job asks of a cluster, or of this machine; knows no SLURM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem

_KEY = "hydra.launcher"


def _minutes(given: Any) -> Any:
    if isinstance(given, str) and not given.strip().isdigit():
        raise ValueError("whole minutes, e.g. 90")
    return given


Minutes = Annotated[int, Field(ge=1), BeforeValidator(_minutes)]
Count = Annotated[int, Field(ge=1)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class HereSettings:
    """One run after the other, in this process; nothing to set."""

    def problems(self, processes: Processes) -> Iterator[Problem]:
        yield from ()


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LocalSettings:
    """Several runs at a time on this machine, each in a process of its own.

    Attributes:
        submitit_folder: of what a job is given, what it gives back, and its output.
        at_once: runs at a time; they share the cores out (unless ``trainer.threads`` is set).
        gpus_per_job: GPUs that belong to a run while it lasts; 0: it sees none.
        timeout_min: minutes after which a run is stopped.
        signal_delay_s: seconds before that at which it is told to save; it then begins again from there,
            at most three times.
        poll_s: seconds between two looks at the jobs.
    """

    submitit_folder: str
    at_once: Count = 2
    gpus_per_job: Annotated[int, Field(ge=0)] = 0
    timeout_min: Minutes = 10080
    signal_delay_s: Annotated[int, Field(ge=1)] = 120
    poll_s: Annotated[float, Field(gt=0)] = 1.0

    def problems(self, processes: Processes) -> Iterator[Problem]:
        if processes.nodes > 1:
            yield Problem(
                "trainer.nodes", f"given {processes.nodes} with hydra/launcher=local", "1"
            )
        if 0 < self.gpus_per_job < processes.devices:
            yield _too_few("gpus_per_job", self.gpus_per_job, processes)
        if self.gpus_per_job:
            import torch

            found, wanted = torch.cuda.device_count(), self.at_once * self.gpus_per_job
            if wanted > found:
                yield Problem(
                    f"{_KEY}.gpus_per_job",
                    f"{self.at_once} at once with {self.gpus_per_job} each are {wanted}, and this "
                    f"machine has {found}",
                    f"{_KEY}.at_once × {_KEY}.gpus_per_job at most {found}",
                )
        yield from _signals(self.signal_delay_s, self.timeout_min)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SlurmSettings:
    """A job of SLURM for each run.

    Attributes:
        submitit_folder: of what a job is given, what it gives back, and its output.
        name: of the jobs in the queue.
        partition: of the cluster; ``None``: the cluster's default.
        timeout_min: minutes after which SLURM ends a job.
        signal_delay_s: seconds before that at which the run is told to save: more than a step takes.
        max_num_timeout: how often a run that has reached its time limit goes back into the queue;
            submitit counts every save that comes after 80 % of the limit, or in its last ten minutes.
        mem_gb: memory of a job on each node, GB; ``None``: the cluster's default.
        cpus_per_task: cores of each process.
        gpus_per_node: GPUs of a job on each node; ``None``: none are asked for.
        tasks_per_node: processes on each node, as many as ``trainer.devices``.
        nodes: as many as ``trainer.nodes``.
        array_parallelism: jobs of the sweep that may run at a time.
        account, qos, constraint, exclude, gres, comment: as sbatch has them.
        setup: shell lines before the run, e.g. ``module load …``.
        additional_parameters: further options of sbatch, name to value.
        stderr_to_stdout: one file for a job's output instead of two.
        poll_s: seconds between two looks at the queue.
    """

    submitit_folder: str
    name: str = "gfn_runner"
    partition: str | None = None
    timeout_min: Minutes = 240
    signal_delay_s: Annotated[int, Field(ge=1)] = 120
    max_num_timeout: Annotated[int, Field(ge=0)] = 10
    mem_gb: Annotated[float, Field(gt=0)] | None = 8
    cpus_per_task: Count = 2
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    tasks_per_node: Count = 1
    nodes: Count = 1
    array_parallelism: Count = 64
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None
    setup: list[str] | None = None
    additional_parameters: dict[str, Any] = Field(default_factory=dict)
    stderr_to_stdout: bool = True
    poll_s: Annotated[float, Field(gt=0)] = 5.0

    def problems(self, processes: Processes) -> Iterator[Problem]:
        for name, given, key, wanted in (
            ("tasks_per_node", self.tasks_per_node, "trainer.devices", processes.devices),
            ("nodes", self.nodes, "trainer.nodes", processes.nodes),
        ):
            if given != wanted:
                yield Problem(f"{_KEY}.{name}", f"given {given}", f"{wanted}, as {key} says")
        if self.gpus_per_node and self.gpus_per_node < processes.devices:
            yield _too_few("gpus_per_node", self.gpus_per_node, processes)
        yield from _signals(self.signal_delay_s, self.timeout_min)

    def for_submitit(self) -> dict[str, Any]:
        """Parameters of submitit's executor, those that say nothing left out."""
        shared = (
            "timeout_min",
            "mem_gb",
            "cpus_per_task",
            "gpus_per_node",
            "tasks_per_node",
            "nodes",
        )
        own = (
            "partition", "signal_delay_s", "array_parallelism", "account", "qos", "constraint", "exclude",
            "gres", "comment", "additional_parameters",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in shared}
        given |= {f"slurm_{name}": getattr(self, name) for name in own}
        # Where SLURM binds no process to its cores, each would start a thread for every core of the node.
        threads = "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
        given["slurm_setup"] = [threads, *(self.setup or ())]
        given |= {"name": self.name, "stderr_to_stdout": self.stderr_to_stdout}
        # Since 22.05 srun does not take it over from the job: a process would have one core.
        # Where one process fails the others would wait for it, for hours.
        given["slurm_srun_args"] = [f"--cpus-per-task={self.cpus_per_task}", "--kill-on-bad-exit=1"]
        return {name: value for name, value in given.items() if value is not None}


LauncherSettings = HereSettings | LocalSettings | SlurmSettings


def _too_few(name: str, given: int, processes: Processes) -> Problem:
    allowed = f"at least trainer.devices = {processes.devices}"
    return Problem(
        f"{_KEY}.{name}", f"given {given}", allowed, f"{_KEY}.{name}={processes.devices}"
    )


def _signals(signal_delay_s: int, timeout_min: int) -> Iterator[Problem]:
    if signal_delay_s >= 60 * timeout_min:
        yield Problem(
            f"{_KEY}.signal_delay_s",
            f"given {signal_delay_s}, the whole time of {timeout_min} minutes",
            f"below {60 * timeout_min}",
        )
