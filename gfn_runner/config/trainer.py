"""Arguments of ``lightning.Trainer`` that a run interprets itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem

_POSITIVE = ("max_steps", "devices", "num_nodes", "accumulate_grad_batches", "log_every_n_steps")
_STRATEGIES = ("auto", "ddp", "fsdp")
# Lightning arguments that a run does not accept, and what to use instead.
_IN_PLACE_OF = {
    "callbacks": "the config group callbacks",
    "logger": "the config group logger",
    "default_root_dir": "nothing: the run sets it",
    "plugins": "nothing: the run sets it",
    # The final evaluation must use exactly the configured number of conditions.
    "limit_val_batches": "evaluation.during and evaluation.final: numbers of conditions",
    "overfit_batches": "a task with few conditions, such as task.data.n_train=4",
    "fast_dev_run": "trainer.max_steps=1, evaluation.final=1",
}


@dataclass(frozen=True)
class TrainerArguments:
    """Arguments of ``lightning.Trainer``, under their original names.

    ``strategy`` is one of ``auto``, ``ddp`` and ``fsdp``. With several devices, ``ddp`` replicates the whole
    model; ``fsdp`` shards its frozen weights, which are gathered for computation.
    """

    arguments: Mapping[str, Any]

    def problems(self) -> Iterator[Problem]:
        """Yield values that Lightning accepts but a run does not."""
        for name in _POSITIVE:
            value = self.arguments.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                yield Problem(f"trainer.{name}", f"given {value!r}", "a whole number, at least 1")
        strategy = self.arguments.get("strategy", "auto")
        if strategy not in _STRATEGIES:
            yield Problem("trainer.strategy", f"given {strategy!r}", ", ".join(_STRATEGIES))
        clip = self.arguments.get("gradient_clip_val")
        if isinstance(clip, int | float) and clip < 0:
            yield Problem("trainer.gradient_clip_val", f"given {clip}", "at least 0, or null")
        for name, other in _IN_PLACE_OF.items():
            if self.arguments.get(name) is not None:
                yield Problem(f"trainer.{name}", "given in the trainer", other)

    @property
    def max_steps(self) -> int:
        """Optimizer steps per round."""
        return int(self.arguments.get("max_steps", 150))

    @property
    def accumulate_grad_batches(self) -> int:
        """Batches per optimizer step."""
        return int(self.arguments.get("accumulate_grad_batches", 1))

    @property
    def processes(self) -> Processes:
        """Number of devices and nodes of the run."""
        return Processes(
            int(self.arguments.get("devices", 1)), int(self.arguments.get("num_nodes", 1))
        )

    @property
    def shards(self) -> bool:
        """Whether the frozen weights are sharded across ranks."""
        return self.arguments.get("strategy") == "fsdp" and self.processes.number > 1
