"""The processes that train one policy together: how they start, and what they tell each other.

Each process has a rank. Together they hold the same policy; each has conditions of its own (and so a
replay buffer of its own), draws for them and averages its gradients with the others'. A run of one
process passes through here untouched.

Processes are started here on one machine; `torchrun` and `srun` may start them instead, on one machine
or several.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gfn_runner.errors import UserError

T = TypeVar("T")
_HOURS = 6  # that one rank may wait for another, which perhaps evaluates much longer texts
_FAILED = "another process of this run has failed; what it said stands above"
_GO_ON = "resume=<run folder> goes on from the newest checkpoint"
_KEYS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# -- who is who ---------------------------------------------------------------------------------


def rank() -> int:
    """This process's rank; 0 where it is alone."""
    return _group().get_rank() if _joined() else 0


def world() -> int:
    """How many processes train together."""
    return _group().get_world_size() if _joined() else 1


def is_first() -> bool:
    """Whether this process writes the run's files and speaks to the user."""
    return rank() == 0


@dataclass(frozen=True)
class Processes:
    """How many a run has.

    Attributes:
        devices: on each machine.
        nodes: machines.
    """

    devices: int = 1
    nodes: int = 1

    @property
    def number(self) -> int:
        return self.devices * self.nodes


def started_rank(wanted: Processes) -> int:
    """The rank that this process was started with, before it has joined the others; 0 without one."""
    if wanted.number == 1:
        return 0
    outside = _environment(wanted.number)
    return 0 if outside is None else outside.global_rank()


def _joined() -> bool:
    # A process that is alone never loads torch for this.
    torch = sys.modules.get("torch")
    return torch is not None and _group().is_available() and _group().is_initialized()


def _group() -> Any:
    import torch.distributed

    return torch.distributed


# -- what they tell each other ------------------------------------------------------------------


def gathered(value: T) -> list[T]:
    """What every rank gives, in the order of ranks; every rank has to call it."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    _group().all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """What rank 0 gives; every rank has to call it."""
    if world() == 1:
        return value
    values = [value]
    _group().broadcast_object_list(values, src=0)
    return values[0]


def same_as_first(tensors: Sequence[Any]) -> None:
    """Overwrite tensors with rank 0's, in place; every rank has to call it."""
    if world() > 1:
        for tensor in tensors:
            _group().broadcast(tensor.data, src=0)


def barrier() -> None:
    """Wait until every rank is here."""
    gathered(None)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """A rank's consecutive part of items; the parts of all ranks make up the whole, in order."""
    size, rest = divmod(len(items), world())
    start = rank() * size + min(rank(), rest)
    return items[start : start + size + (rank() < rest)]


def own_keys(keys: Sequence[str]) -> list[str]:
    """The keys that belong to this rank, in their order.

    Keys are dealt out in the order of a hash, so that ranks have equally many (but for one), and the same
    ones in every process and every run with as many ranks.
    """
    order = sorted(keys, key=lambda key: hashlib.sha256(key.encode("utf-8")).digest())
    own = set(order[rank() :: world()])
    return [key for key in keys if key in own]


# -- starting -----------------------------------------------------------------------------------


@contextlib.contextmanager
def together(wanted: Processes, config_file: Path | None) -> Iterator[None]:
    """Within it all processes of the run are joined.

    Args:
        wanted: how many there are.
        config_file: of the run, which holds all that another process needs to know; ``None`` in a process
            that was started by another.

    Raises:
        UserError: if another process has failed.
    """
    if wanted.number == 1:
        yield
        return
    others: list[subprocess.Popen[bytes]] = []
    before = {key: os.environ.get(key) for key in _KEYS}
    try:
        if _environment(wanted.number) is None:
            assert config_file is not None  # whoever was started has an environment
            others = _start_others(wanted, config_file)
        _join(wanted)
        yield
        barrier()
    except RuntimeError as error:
        if _has_failed(others):
            raise UserError.one("a run of several processes", _FAILED, fix=_GO_ON) from error
        raise
    finally:
        _part(others)
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def cluster_environment(wanted: Processes) -> Any:
    """Lightning's plugin that knows rank and address.

    One process is always told that it is alone: left to itself, Lightning would take a SLURM job for its
    own, and answer the signals that are meant for us.
    """
    from lightning.pytorch.plugins.environments import LightningEnvironment

    return LightningEnvironment() if wanted.number == 1 else _environment(wanted.number)


def _environment(size: int) -> Any:
    """Of processes that somebody has started, as many as ``size``; else ``None``."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys():
        return TorchElasticEnvironment()
    # srun sets it, a batch script alone does not: there this process is the only one.
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(size):
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            # Lightning would refuse it, in the middle of things.
            raise UserError.one(
                "srun", "given without --ntasks-per-node", "--ntasks-per-node=<trainer.devices>"
            )
        return SLURMEnvironment(auto_requeue=False)
    return None


def refuse_impossible(wanted: Processes) -> None:
    """Check that the processes and devices that are asked for can be had.

    Raises:
        UserError: if there are fewer devices, or as many processes are neither started nor can be.
    """
    if wanted.number == 1:
        return
    import torch

    outside = _environment(wanted.number)
    if outside is None and wanted.nodes > 1:
        raise UserError.one(
            "trainer.nodes",
            f"given {wanted.nodes}, but nobody has started processes on other machines",
            "1, or the command under torchrun or srun, as many processes as "
            f"trainer.nodes × trainer.devices = {wanted.number}",
        )
    if outside is not None and outside.world_size() != wanted.number:
        raise UserError.one(
            "trainer.devices",
            f"given {wanted.nodes} × {wanted.devices}, but {outside.world_size()} processes were "
            "started",
            "trainer.nodes × trainer.devices as many as processes",
        )
    found = torch.cuda.device_count()
    if found and wanted.devices > found:
        raise UserError.one(
            "trainer.devices",
            f"given {wanted.devices}",
            f"at most {found}, the GPUs of this machine",
        )


def _start_others(wanted: Processes, config_file: Path) -> list[subprocess.Popen[bytes]]:
    """Processes of ranks 1, 2, … on this machine; this one becomes rank 0."""
    shared = {
        "WORLD_SIZE": str(wanted.number),
        "LOCAL_WORLD_SIZE": str(wanted.number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "gfn_runner.distributed.worker", str(config_file.resolve())]
    others = []
    for number in range(1, wanted.number):
        own = {"RANK": str(number), "LOCAL_RANK": str(number), "PYTHONPATH": path}
        others.append(subprocess.Popen(command, env={**os.environ, **shared, **own}))
    os.environ |= {**shared, "RANK": "0", "LOCAL_RANK": "0"}
    threading.Thread(target=_watch, args=(others,), daemon=True).start()
    return others


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _watch(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process if another has failed: it may wait for an answer that never comes."""
    while True:
        codes = [process.poll() for process in others]
        if any(code not in (None, 0) for code in codes):
            time.sleep(10)  # mostly it notices by itself, and ends as it should
            print(f"gfn_runner: {_FAILED}", file=sys.stderr, flush=True)
            os._exit(1)
        if all(code == 0 for code in codes):
            return
        time.sleep(0.5)


def _has_failed(others: Sequence[subprocess.Popen[bytes]], seconds: float = 3) -> bool:
    """Whether another process ends with an error, now or soon."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(process.poll() not in (None, 0) for process in others):
            return True
        time.sleep(0.1)
    return False


def end_with_parent() -> None:
    """End this process when the one that has started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join(wanted: Processes) -> None:
    import torch

    environment = _environment(wanted.number)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(environment.local_rank())
    _group().init_process_group(
        # Python objects go by the CPU, gradients by the GPU where there is one.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        init_method=f"tcp://{environment.main_address}:{environment.main_port}",
        rank=environment.global_rank(),
        world_size=wanted.number,
        timeout=datetime.timedelta(hours=_HOURS),
    )


def _part(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leave the group; nobody that was started here stays."""
    failed = sys.exc_info()[0] is not None
    if _joined() and not failed:
        _group().destroy_process_group()
    for process in others:
        if failed:
            process.kill()  # it writes nothing that could be left half written
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if _joined():
        _group().destroy_process_group()
