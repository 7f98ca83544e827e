"""The environment of a run: git commit, package versions, machine, cores, memory and threads."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "gfn-runner", "torch", "transformers", "tokenizers", "peft", "lightning", "hydra-core",
    "omegaconf", "wandb", "pydantic", "numpy", "scipy", "rapidfuzz",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return the contents of ``environment.json``; ``git`` is ``None`` outside a repository."""
    import torch

    return {
        "git": _git(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "waiting": {name: os.environ[name] for name in _WAITING if name in os.environ},
        "packages": {name: _version(name) for name in _PACKAGES},
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# Changes in docs/ and tests/ do not affect what a run computes.
_CODE = (":/", ":(exclude,top)docs", ":(exclude,top)tests")


def _git() -> dict[str, Any] | None:
    """Return this code's commit, and whether tracked files that may affect a run have changed since."""

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip

    try:
        return {
            "commit": ask("rev-parse", "HEAD"),
            "changed": bool(ask("status", "--porcelain", "--untracked-files=no", "--", *_CODE)),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_gib() -> float:
    """Return the peak resident memory of this process on the host in GiB, without GPU memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_gpu_memory_peaks() -> None:
    """Reset the peak GPU memory statistics, since one process may execute several runs."""
    import torch

    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def peak_gpu_memory_gib(device: torch.device) -> float | None:
    """Return the peak GPU memory in GiB held by tensors of this process; ``None`` on a CPU."""
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(device) / 2**30


def cores() -> int:
    """Return the number of CPU cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_per_process(processes: int) -> int:
    """Return the number of CPU threads per process such that concurrent processes share no core."""
    return max(1, cores() // processes)


@contextlib.contextmanager
def default_variables(**values: str) -> Iterator[None]:
    """Set environment variables within the context, unless they are already set."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


# How waiting OpenMP threads behave: the standard variable, then those of GNU's and Intel's runtimes.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_SPINS = "1000"  # GNU's default is 300,000


def limit_thread_spinning() -> None:
    """Limit how long torch's waiting threads spin, unless the environment already sets it.

    Spinning threads occupy the cores of the threads they wait for as soon as another process needs a core;
    without any spinning, a small model is slower on an idle machine (docs/benchmarks.md, "Threads"). The
    OpenMP runtime reads the variable when torch is imported; after that, this function does nothing.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
