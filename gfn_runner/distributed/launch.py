"""Start the ranks of a run and join them into one process group.

Rank 0 starts the others on one machine; alternatively, torchrun or srun starts all of them, on one
machine or several.
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

_HOURS = 6  # timeout for collectives: another rank may evaluate much longer texts
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def launch_ranks(wanted: Processes, config_file: Path | None) -> Iterator[None]:
    """Context manager within which all ranks of the run have joined one process group.

    Args:
        wanted: the processes of the run.
        config_file: config of the run, used to start this machine's other ranks; ``None`` if this process was
            started by a launcher or by rank 0.

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
            assert config_file is not None  # workers have an environment
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
    """Return whether this process was started by a launcher or rank 0, with a rank above 0."""
    environment = None if wanted.number == 1 else _environment(wanted)
    return environment is not None and environment.global_rank() > 0


def check_launcher(wanted: Processes, *, multirun: bool = False) -> None:
    """Check that torchrun or srun, if it started this process, matches the config.

    Args:
        multirun: whether the run belongs to a sweep, in which only rank 0 knows the next run.

    Raises:
        UserError: if it does not match.
    """
    size = 1
    if _by_torchrun():
        size = int(os.environ["WORLD_SIZE"])
    elif wanted.number > 1 and (environment := _environment(wanted)) is not None:
        size = environment.world_size()
    if multirun and size > 1:
        raise UserError.one(
            "--multirun",
            f"given in {size} processes (WORLD_SIZE) that torchrun or srun has started",
            "one process",
            "the command without torchrun or srun: trainer.devices starts the processes of each run, "
            "hydra/launcher=slurm those on more machines",
        )
    if _by_torchrun() and size != wanted.number:
        raise UserError.one(
            "trainer.devices",
            f"trainer.num_nodes × trainer.devices = {wanted.nodes} × {wanted.devices}, but torchrun has "
            f"started WORLD_SIZE={size} processes",
            "as many processes as WORLD_SIZE",
            f"trainer.devices={size}, or, with trainer.num_nodes=<machines>, an equal share per machine",
        )


def check_world_size(wanted: Processes) -> None:
    """Check that the requested processes and devices are available.

    Raises:
        UserError: if there are too few devices, or the processes are neither running nor can be started.
    """
    check_launcher(wanted)
    if wanted.number == 1:
        return
    import torch

    if wanted.nodes > 1 and _environment(wanted) is None:
        raise UserError.one(
            "trainer.num_nodes",
            f"given {wanted.nodes}, but no launcher has started processes on other machines",
            "1, or the command under torchrun or srun, as many processes as "
            f"trainer.num_nodes × trainer.devices = {wanted.number}",
        )
    found = torch.cuda.device_count()
    if found and wanted.devices > found and not _has_own_gpu(wanted):
        raise UserError.one(
            "trainer.devices",
            f"given {wanted.devices}",
            f"at most {found}, the GPUs of this machine",
        )


# -- environments -------------------------------------------------------------------------------


def cluster_environment(wanted: Processes) -> Any:
    """Return Lightning's plugin that provides the rank and address.

    A single process always gets the plugin for one: otherwise Lightning would detect a SLURM job, and
    handle the signals that this package handles.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return LightningEnvironment() if wanted.number == 1 else _environment(wanted)


def lightning_devices(wanted: Processes) -> dict[str, int]:
    """Return ``devices`` and ``num_nodes`` for ``lightning.Trainer``."""
    if _has_own_gpu(wanted):
        return {"devices": 1, "num_nodes": wanted.number}
    return {"devices": wanted.devices, "num_nodes": wanted.nodes}


def _by_torchrun() -> bool:
    """Return whether torchrun, or rank 0 with the same variables, started this process."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()


def _by_srun(wanted: Processes) -> bool:
    # Set by srun, but not in a batch script, in which this process is the only one.
    return os.environ.get("SLURM_STEP_NUM_TASKS") == str(wanted.number)


def _has_own_gpu(wanted: Processes) -> bool:
    """Return whether this process sees only one of several GPUs, as under ``srun --gpus-per-task=1``."""
    if wanted.devices == 1 or _by_torchrun() or not _by_srun(wanted):
        return False
    import torch

    return torch.cuda.device_count() == 1


def _environment(wanted: Processes) -> Any:
    """Return Lightning's plugin for the launcher of this process; ``None`` for a single process."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if _by_torchrun():
        return TorchElasticEnvironment()
    if not _by_srun(wanted):
        return None
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        # Lightning would raise this without a fix, after loading the model.
        raise UserError.one(
            "srun", "given without --ntasks-per-node", "--ntasks-per-node=<trainer.devices>"
        )

    class OneGPU(SLURMEnvironment):
        """Treats each process as its own node, since Lightning uses the local rank as GPU index."""

        def local_rank(self) -> int:
            return 0

        def node_rank(self) -> int:
            return self.global_rank()

        def validate_settings(self, num_devices: int, num_nodes: int) -> None:
            """Skip validation: the numbers of devices and nodes no longer match those of srun."""

    kind = OneGPU if _has_own_gpu(wanted) else SLURMEnvironment
    return kind(auto_requeue=False)


# -- processes ----------------------------------------------------------------------------------


def _start_workers(wanted: Processes, config_file: Path) -> list[subprocess.Popen[bytes]]:
    """Start ranks 1, 2, … on this machine; this process becomes rank 0.

    Lightning's launcher would rerun the command line, which creates a folder or starts a sweep.
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
    """Join the process group; rank 0 stops waiting if a worker exits before it has joined."""
    import torch
    import torch.distributed as dist

    environment = _environment(wanted)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(environment.local_rank())
    own, timeout = environment.global_rank(), datetime.timedelta(hours=_HOURS)
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # store made by torchrun
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
        # Python objects use the CPU backend, gradients the GPU backend if available.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=own,
        world_size=wanted.number,
        timeout=timeout,
    )


def _abort_nccl(workers: Sequence[subprocess.Popen[bytes]], joined: threading.Event) -> None:
    """Abort NCCL's collectives if a worker has failed: unlike gloo's, they would wait for it.

    The main thread then raises, so that a sweep in this process records the failure and continues.
    """
    import torch
    import torch.distributed as dist

    while joined.is_set() and torch.cuda.is_available():
        if _has_failed(workers, seconds=0.5):
            time.sleep(10)  # rank 0 usually gets an error from gloo first
            if joined.is_set():
                group: Any = dist.group.WORLD
                group._get_backend(torch.device("cuda")).abort()
            return


def _has_failed(workers: Sequence[subprocess.Popen[bytes]], seconds: float = 3) -> bool:
    """Return whether a worker exits with an error within ``seconds``."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(process.poll() not in (None, 0) for process in workers):
            return True
        time.sleep(0.1)
    return False


def _failed() -> UserError:
    what = "another rank of this run has failed; its error is above"
    fix = "resume=<run folder> continues from the newest checkpoint"
    return UserError.one("trainer.devices", what, fix=fix)


def exit_with_parent() -> None:
    """Exit this process when its parent process is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leave the process group, and wait for all workers to exit."""
    import torch.distributed as dist

    failed = sys.exc_info()[0] is not None
    if dist.is_initialized() and not failed:
        dist.destroy_process_group()
    for process in workers:
        if failed:
            process.kill()  # workers write no files
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if dist.is_initialized():
        dist.destroy_process_group()
