"""Phases of a run: their duration, and their names in profiles and out-of-memory errors."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from gfn_runner.errors import UserError

_BATCH = (
    "lower sampling.n_conditions (and raise trainer.accumulate_grad_batches by the same factor: "
    "the gradient stays the same), or sampling.n_samples, or task.max_len"
)
# Settings that reduce the memory of each phase.
LOWER = {
    "load": "lm.dtype=bfloat16, lm.quantization=4bit, a smaller lm.lora.rank or a smaller model",
    "sample": _BATCH,
    "reward": f"lower lm.max_tokens_per_forward; or {_BATCH}",
    "policy": f"set or lower lm.recompute_above; or {_BATCH}; lm.dtype=bfloat16 helps too",
    "objective": _BATCH,
    "backward": f"set or lower lm.recompute_above; or {_BATCH}; lm.dtype=bfloat16 helps too",
    "evaluation": "lower evaluation.memory_gib, evaluation.batch or lm.max_tokens_per_forward",
}
_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")


class Phases:
    """Seconds spent in each phase since they were last taken.

    On a GPU this is host time: a phase waits for kernels only when it first needs one of their results.

    Attributes:
        profiler: Lightning profiler, whose report then has a line ``gfn/<phase>``; or ``None``.
    """

    def __init__(self) -> None:
        self.profiler: Any = None
        self._seconds: dict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the context as phase ``name``, one of :data:`LOWER`.

        Raises:
            UserError: if memory runs out, naming the phase and the settings to lower.
        """
        started = time.perf_counter()
        label = f"gfn/{name}"
        profiled = (
            contextlib.nullcontext() if self.profiler is None else self.profiler.profile(label)
        )
        try:
            with torch.profiler.record_function(label), profiled, explain_out_of_memory(name):
                yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Return the seconds by phase, and reset them."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means out of memory; on a CPU, torch raises a plain ``RuntimeError``."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(message in text for message in _MESSAGES)


@contextlib.contextmanager
def explain_out_of_memory(name: str) -> Iterator[None]:
    """Turn an out-of-memory error into a ``UserError`` with the phase and the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError.one(
            f"memory ran out in the phase {name!r}", first_line, fix=LOWER[name]
        ) from error
