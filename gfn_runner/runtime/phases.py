"""Phases of a run: timed, named in profiles, and named when memory runs out; computes nothing."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from gfn_runner.errors import UserError

_BATCH = (
    "lower sampling.conditions (and raise trainer.accumulate as much: the gradient is the same), or "
    "sampling.samples, or task.max_len"
)
# What takes the memory of each phase, as settings.
LOWER = {
    "load": "lm.dtype=bfloat16, lm.quantization=4bit, a smaller lm.lora.rank or a smaller model",
    "sample": _BATCH,
    "reward": f"lower lm.max_tokens_per_forward; or {_BATCH}",
    "policy": f"set or lower lm.recompute_above; or {_BATCH}; lm.dtype=bfloat16 helps too",
    "objective": _BATCH,
    "backward": f"set or lower lm.recompute_above; or {_BATCH}; lm.dtype=bfloat16 helps too",
    "evaluation": "lower callbacks.evaluation.memory_gib, callbacks.evaluation.batch or "
    "lm.max_tokens_per_forward",
}
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


class Phases:
    """Seconds of each phase since they were last taken.

    On a GPU they are the host's: kernels are waited for where a phase first needs a number of theirs.

    Attributes:
        profiler: Lightning's, whose report then has a line ``gfn/<phase>``; or ``None``.
    """

    def __init__(self) -> None:
        self.profiler: Any = None
        self._seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Within it runs the phase ``name``, one of :data:`LOWER`.

        Raises:
            UserError: if memory runs out, with the phase and what to lower.
        """
        started = time.perf_counter()
        label = f"gfn/{name}"
        profiled = (
            contextlib.nullcontext() if self.profiler is None else self.profiler.profile(label)
        )
        try:
            with torch.profiler.record_function(label), profiled, explained(name):
                yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by phase; begins anew."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Say in which phase memory ran out, and what to lower.

    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU torch raises a plain RuntimeError.
        text = str(error)
        if not isinstance(error, MemoryError) and not any(m in text.lower() for m in _MESSAGES):
            raise
        first_line = (text.strip() or type(error).__name__).splitlines()[0]
        raise UserError.one(
            f"memory ran out in the phase {name!r}", first_line, fix=LOWER[name]
        ) from error
