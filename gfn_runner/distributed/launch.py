"""How the ranks of a run start and join one process group.

Rank 0 starts the others on one machine; torchrun or srun may start all of them instead, on one machine or
several.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.distributed.ranks import Processes, barrier
from gfn_runner.errors import UserError

_HOURS = 6  # that one rank may wait for another, which perhaps evaluates much longer texts
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def launch_ranks(wanted: Processes, config_file: Path | None) -> Iterator[None]:
    """Within it all ranks of the run have joined one process group.

    Args:
        wanted: how many there are.
        config_file: of the run, from which this machine's other ranks are started; ``None`` where a
            launcher, or rank 0, has started this process.

    Raises:
        UserError: if another rank has failed.
    """
    if wanted.number == 1:
        yield
        return
    workers: list[subprocess.Popen[bytes]] = []
    before = {key: os.environ.get(key) for key in _VARIABLES}
    joined = threading.Event()
    try:
        if _environment(wanted) is None:
            assert config_file is not None  # a worker has an environment
            workers = _start_workers(wanted, config_file)
        _join(wanted, workers)
        joined.set()
        if workers:
            threading.Thread(target=_abort_nccl, args=(workers, joined), daemon=True).start()
        yield
        barrier()
    except RuntimeError as error:
        if _has_failed(workers):
            raise _failed() from error
        raise
    finally:
        joined.clear()
        _leave(workers)
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def is_worker(wanted: Processes) -> bool:
    """Whether a launcher, or rank 0, has started this process with a rank above 0."""
    environment = None if wanted.number == 1 else _environment(wanted)
    return environment is not None and environment.global_rank() > 0


def refuse_launcher(wanted: Processes) -> None:
    """Refuse a sweep that torchrun or srun has started: rank 0 alone would know its next run.

    Raises:
        UserError: if one has.
    """
    if (size := _started(wanted)) > 1:
        raise UserError.one(
            "--multirun",
            f"given in {size} processes (WORLD_SIZE) that torchrun or srun has started",
            "one process",
            "the command without torchrun or srun: trainer.devices starts the processes of each run, "
            "hydra/launcher=slurm those on more machines",
        )


def check_world_size(wanted: Processes) -> None:
    """Check that the processes and devices that are asked for can be had.

    Raises:
        UserError: if there are fewer devices, or as many processes are neither started nor can be.
    """
    size = _started(wanted)
    if _by_torchrun() and size != wanted.number:
        raise UserError.one(
            "trainer.devices",
            f"trainer.num_nodes × trainer.devices = {wanted.nodes} × {wanted.devices}, but torchrun has "
            f"started WORLD_SIZE={size} processes",
            "as many processes as WORLD_SIZE",
            f"trainer.devices={size}, with trainer.num_nodes=<machines> on several: a part of them each",
        )
    if wanted.nodes > 1 and size == 1:
        raise UserError.one(
            "trainer.num_nodes",
            f"given {wanted.nodes}, but no launcher has started processes on other machines",
            "1, or the command under torchrun or srun, as many processes as "
            f"trainer.num_nodes × trainer.devices = {wanted.number}",
        )
    import torch

    found = torch.cuda.device_count()
    if 0 < found < wanted.devices:
        raise UserError.one(
            "trainer.devices",
            f"given {wanted.devices}",
            f"at most {found}, the GPUs that each process sees",
            "under srun --gpus-per-node in place of --gpus-per-task" if _by_srun(wanted) else "",
        )


# -- environments -------------------------------------------------------------------------------


def cluster_environment(wanted: Processes) -> Any:
    """Lightning's plugin that knows rank and address.

    One process always gets Lightning's for one: left to itself, Lightning would take a SLURM job for its
    own, and handle the signals that this package handles.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return LightningEnvironment() if wanted.number == 1 else _environment(wanted)


def _started(wanted: Processes) -> int:
    """Number of processes that torchrun or srun has started; 1 where there is only this one."""
    if _by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    environment = None if wanted.number == 1 else _environment(wanted)
    return 1 if environment is None else int(environment.world_size())


def _by_torchrun() -> bool:
    """Whether torchrun, or rank 0 with the same variables, has started this process."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def _by_srun(wanted: Processes) -> bool:
    # srun sets it, a batch script alone does not: there this process is the only one.
    return os.environ.get("SLURM_STEP_NUM_TASKS") == str(wanted.number)


def _environment(wanted: Processes) -> Any:
    """Lightning's plugin of what has started as many processes; ``None`` where this one is alone."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if _by_torchrun():
        return TorchElasticEnvironment()
    if not _by_srun(wanted):
        return None
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        # Lightning would raise it without a fix, after the model has been loaded.
        raise UserError.one(
            "srun", "given without --ntasks-per-node", "--ntasks-per-node=<trainer.devices>"
        )

    return SLURMEnvironment(auto_requeue=False)


# -- processes ----------------------------------------------------------------------------------


def _start_workers(wanted: Processes, config_file: Path) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1, 2, … on this machine; this process becomes rank 0.

    Lightning's own launcher would run the command line again, which makes a folder or begins a sweep.
    """
    from lightning.fabric.plugins.environments.lightning import find_free_network_port

    shared = {
        "WORLD_SIZE": str(wanted.number),
        "LOCAL_WORLD_SIZE": str(wanted.number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
    }
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "gfn_runner.cli.worker", str(config_file.resolve())]
    workers = []
    for number in range(1, wanted.number):
        own = {"RANK": str(number), "LOCAL_RANK": str(number), "PYTHONPATH": path}
        workers.append(subprocess.Popen(command, env={**os.environ, **shared, **own}))
    os.environ |= {**shared, "RANK": "0", "LOCAL_RANK": "0"}
    return workers


def _join(wanted: Processes, workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Join the process group; rank 0 stops waiting where a worker ends before it has joined."""
    import torch
    import torch.distributed as dist

    environment = _environment(wanted)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(environment.local_rank())
    own, timeout = environment.global_rank(), datetime.timedelta(hours=_HOURS)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun has made the store
    store: Any = dist.TCPStore(
        environment.main_address,
        environment.main_port,
        is_master=own == 0 and not agent,
        timeout=timeout,
        wait_for_workers=False,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"gfn_runner/{attempt}", store)
    store.set(str(own), "ready")
    while workers and not store.check([str(number) for number in range(wanted.number)]):
        if _has_failed(workers, seconds=0.1):
            raise _failed()
    dist.init_process_group(
        # Python objects go over the CPU, gradients over the GPU where there is one.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=own,
        world_size=wanted.number,
        timeout=timeout,
    )


def _abort_nccl(workers: Sequence[subprocess.Popen[bytes]], joined: threading.Event) -> None:
    """End NCCL's collectives where a worker has failed: unlike gloo's, they would wait for it.

    The main thread then raises, so that a sweep in this process notes the failure and goes on.
    """
    import torch
    import torch.distributed as dist

    while joined.is_set() and torch.cuda.is_available():
        if _has_failed(workers, seconds=0.5):
            time.sleep(10)  # rank 0 mostly meets gloo first, and raises by itself
            if joined.is_set():
                group: Any = dist.group.WORLD
                group._get_backend(torch.device("cuda")).abort()
            return


def _has_failed(workers: Sequence[subprocess.Popen[bytes]], seconds: float = 3) -> bool:
    """Whether a worker ends with an error, now or soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(process.poll() not in (None, 0) for process in workers):
            return True
        time.sleep(0.1)
    return False


def _failed() -> UserError:
    what = "another rank of this run has failed; its error stands above"
    fix = "resume=<run folder> goes on from the newest checkpoint"
    return UserError.one("trainer.devices", what, fix=fix)


def exit_with_parent() -> None:
    """End this process when the one that has started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leave the process group; no worker outlives it."""
    import torch.distributed as dist

    failed = sys.exc_info()[0] is not None
    if dist.is_initialized() and not failed:
        dist.destroy_process_group()
    for process in workers:
        if failed:
            process.kill()  # it writes no files
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if dist.is_initialized():
        dist.destroy_process_group()
