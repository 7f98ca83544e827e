"""Settings of the parts that need Lightning; apart from them, so that a config is checked fast.

Every other part has its settings beside its code. Here importing the code would cost seconds before
the first typo could be reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SamplingSettings:
    """Trajectories of a training step.

    Attributes:
        conditions: per batch.
        samples: trajectories per condition.
        tempered: share of the fresh batches that explore at a temperature drawn uniformly from
            ``min_temperature`` to ``max_temperature``; the others are on-policy.
    """

    conditions: Annotated[int, Field(ge=1)] = 8
    samples: Annotated[int, Field(ge=1)] = 16
    tempered: Annotated[float, Field(ge=0, le=1)] = 0.667
    min_temperature: Annotated[float, Field(gt=0)] = 0.5
    max_temperature: Annotated[float, Field(gt=0)] = 2.0

    def problems(self) -> Iterator[Problem]:
        if self.min_temperature > self.max_temperature:
            yield Problem(
                "sampling.min_temperature",
                f"given {self.min_temperature}, above sampling.max_temperature = "
                f"{self.max_temperature}",
                f"above 0, at most {self.max_temperature}",
            )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class OptimSettings:
    """AdamW.

    Attributes:
        lr: peak learning rate.
        warmup: optimizer steps of linear warm-up, the first one at lr/warmup.
        decay: what follows the warm-up: nothing, or a line to 0 at the last step.
        weight_decay, betas: as in AdamW.
        grad_clip: largest norm of the averaged gradient; 0 for no clipping.
    """

    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 10
    decay: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.99,
    )
    grad_clip: Annotated[float, Field(ge=0)] = 1.0


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TrainerSettings:
    """How long, and how a step is made.

    Attributes:
        max_steps: optimizer steps.
        accumulate: batches per optimizer step; their gradients are averaged.
        log_every: optimizer steps between two lines of ``metrics.jsonl``.
        threads: CPU threads of torch; ``None`` leaves torch's own choice.
    """

    max_steps: Annotated[int, Field(ge=1)] = 150
    accumulate: Annotated[int, Field(ge=1)] = 1
    log_every: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] | None = None


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class CheckpointSettings:
    """When the state of a run is kept; the newest checkpoint replaces the one before.

    Attributes:
        every: optimizer steps; one more checkpoint is written at the end.
    """

    every: Annotated[int, Field(ge=1)] = 50


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class HealthSettings:
    """What ends a run before its time, and what only gets a line in the log.

    Attributes:
        abort_on_non_finite: stop at a loss or a gradient that is NaN or infinite, naming the
            condition; off, the bad step is only reported.
        unsatisfied_after: fresh samples of one condition of which none met its demands, after which a
            line in the log says so; 0 for no such line.
    """

    abort_on_non_finite: bool = True
    unsatisfied_after: Annotated[int, Field(ge=0)] = 256


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ProgressSettings:
    """What is shown while a run lasts.

    Attributes:
        show: ``auto`` draws bars in a terminal and prints lines elsewhere; or force either; or
            ``none``.
        every: optimizer steps between two printed lines.
    """

    show: Literal["auto", "bar", "lines", "none"] = "auto"
    every: Annotated[int, Field(ge=1)] = 10


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LoggerSettings:
    """Where metrics go besides ``metrics.jsonl``, which is always written.

    Attributes:
        wandb: ``offline`` writes W&B's files into the run folder, ``online`` sends them (and goes
            on offline without an account or a network), ``off`` does neither.
        project, entity, group, tags: as W&B names them; the task and the objective are tags anyway.
    """

    wandb: Literal["offline", "online", "off"] = "offline"
    project: str = "gfn_runner"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
