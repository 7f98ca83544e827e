"""Measurements shared by the benchmark's sections: alternating times, peak memory, and growth exponents."""

from __future__ import annotations

import gc
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "benchmark.py"


def alternating(
    contestants: Mapping[str, Callable[[int], object]], repeats: int, *, warm: bool = True
) -> dict[str, list[float]]:
    """Measure seconds of each contestant, alternating in every round; if ``warm``, an extra round warms up.

    Temporary load on the machine affects all contestants alike, so that ratios remain meaningful.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(0 if warm else 1, repeats + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run(number)
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, minimum and maximum of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def with_range(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f}–{values[2]:.2f})"


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent of growth: the slope of log time against log size; 1 is proportional."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _status_gib(name: str) -> float:
    """Return an entry of this process's status, as reported by Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024**2


def _forget_peak() -> None:
    """Reset the peak to the current memory, since loading a model takes more than a small step."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(*options: str) -> float:
    """Return the GiB that one step needs in addition to the loaded model; ``nan`` if it did not fit.

    Args:
        options: options of the benchmark, which runs one step in a separate process; include ``--memory``.
    """
    result = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True)
    return float(result.stdout.split()[-1]) if result.returncode == 0 else math.nan


def memory_of(step: Callable[[], object], device: torch.device) -> float:
    """Return the GiB that ``step`` allocates on top of current memory; NaN if the system cannot tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 1024**3
    if not Path("/proc/self/clear_refs").exists():
        return math.nan  # available on Linux only
    gc.collect()
    _forget_peak()
    before_gib = _status_gib("VmRSS")
    step()
    return _status_gib("VmHWM") - before_gib
