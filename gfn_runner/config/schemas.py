"""Settings of the parts that need torch or Lightning; apart from them, so that a config is checked fast.

Every other part has its settings beside its code. Here importing the code would cost seconds before
the first typo could be reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.data.conditions import Condition
from gfn_runner.distributed.ranks import Processes
from gfn_runner.errors import Problem
from gfn_runner.lm.settings import MINILM, WORDS, LoraSettings, sentence_model_problems
from gfn_runner.metrics.judge import FIELDS, JudgeSettings
from gfn_runner.runtime.local_paths import LocalPath

if TYPE_CHECKING:
    from gfn_runner.tasks.base import Task

# As W&B has it.
_NOT_IN_PROJECTS, _LONGEST_PROJECT = "/\\#?%:", 128


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
        devices: GPUs of each machine, or processes where there is none; each draws
            ``sampling.conditions`` × ``sampling.samples`` strings a batch, for conditions of its own.
        nodes: machines; above 1 their processes are started by torchrun or srun.
        strategy: for more than one device: ``ddp`` holds the whole model on each, ``fsdp`` shares out its
            frozen weights, gathered while they are computed with.
        accumulate: batches per optimizer step; their gradients are averaged.
        log_every: optimizer steps between two lines of ``metrics.jsonl``.
        threads: CPU threads of torch; ``None`` leaves torch's own choice.
        float32_matmul_precision: of fp32 matrix products, as in ``torch.set_float32_matmul_precision``;
            ``None`` is ``high`` (TF32) on a GPU beside weights in half precision, whose own rounding is
            coarser, and ``highest`` everywhere else.
        profiler: of Lightning, whose report in the run's folder then names our phases (``gfn/sample`` …):
            ``simple`` their times, ``advanced`` Python's functions too, ``pytorch`` torch's operators.
    """

    max_steps: Annotated[int, Field(ge=1)] = 150
    devices: Annotated[int, Field(ge=1)] = 1
    nodes: Annotated[int, Field(ge=1)] = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    accumulate: Annotated[int, Field(ge=1)] = 1
    log_every: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] | None = None
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None

    @property
    def processes(self) -> Processes:
        """Of the run."""
        return Processes(self.devices, self.nodes)

    @property
    def shards(self) -> bool:
        """Whether ranks share out the weights."""
        return self.strategy == "fsdp" and self.processes.number > 1


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class CheckpointSettings:
    """When the state of a run is kept.

    Attributes:
        every: optimizer steps; one more is written at the end, and where a signal ends the run.
        keep: the newest ones; where the newest is damaged, a run goes on from the one before.
    """

    every: Annotated[int, Field(ge=1)] = 50
    keep: Annotated[int, Field(ge=1)] = 2


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class HealthSettings:
    """What ends a run before its time, and what only gets a line in the log.

    Attributes:
        most_non_finite: optimizer steps in a row whose loss or gradient is NaN or infinite. Each is
            skipped (weights and optimizer stay as they are), counted and reported; with this many the run
            stops, naming the conditions. 1 stops at the first, 0 never.
        unsatisfied_after: fresh samples of one condition of which none met its demands, after which a
            line in the log says so; 0 for no such line.
    """

    most_non_finite: Annotated[int, Field(ge=0)] = 5
    unsatisfied_after: Annotated[int, Field(ge=0)] = 256


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ProgressSettings:
    """What is shown while a run lasts.

    Attributes:
        show: ``auto`` draws bars in a terminal and prints lines elsewhere; or force either; or
            ``none``.
        every: optimizer steps between two printed lines; fewer where they take more than 30 s.
    """

    show: Literal["auto", "bar", "lines", "none"] = "auto"
    every: Annotated[int, Field(ge=1)] = 10


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class ReportSettings:
    """The pages ``report.html`` in the folders of the run and of its sweep.

    Attributes:
        pages: ``live`` writes them when training begins, after every evaluation and at the end; ``end``
            only at the end; ``off`` never (``python -m gfn_runner.report --pages`` makes them later).
        refresh: seconds after which a browser loads the page of an unfinished run again.
        pause: seconds at least between two pages of a sweep, which several jobs may write; and at least
            fifty times as long as the last one took.
    """

    pages: Literal["live", "end", "off"] = "live"
    refresh: Annotated[int, Field(ge=1)] = 30
    pause: Annotated[float, Field(ge=0)] = 30.0


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class LoggerSettings:
    """Where metrics go besides ``metrics.jsonl``, which is always written.

    Attributes:
        wandb: ``offline`` writes W&B's files into the run folder, ``online`` sends them (and goes
            on offline without an account or a network), ``off`` does neither.
        project, entity: as W&B names them; a project's name has at most 128 characters, and none of
            ``/ \\ # ? % :``.
        group: likewise; ``None`` is the multirun that the run belongs to, if any.
        tags: likewise; the task and the objective are tags anyway. What is longer than W&B's 64
            characters is cut, with a hash at its end.
        histograms_every: optimizer steps between two histograms of φ, log R, lengths and the buffer; 0
            for none.
        sample_rows: of the table of samples of each evaluation, at most; 0 for no tables.
        finish_timeout: seconds that the end of a run waits for a server to take what is not sent yet; 0
            waits for ever.
    """

    wandb: Literal["offline", "online", "off"] = "offline"
    project: str = "gfn_runner"
    entity: str | None = None
    group: str | None = None
    tags: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    histograms_every: Annotated[int, Field(ge=0)] = 10
    sample_rows: Annotated[int, Field(ge=0)] = 48
    finish_timeout: Annotated[float, Field(ge=0)] = 120.0

    def problems(self) -> Iterator[Problem]:
        """What W&B would refuse when the run starts."""
        forbidden = [letter for letter in _NOT_IN_PROJECTS if letter in self.project]
        if forbidden or not 1 <= len(self.project) <= _LONGEST_PROJECT:
            given = f"given {self.project!r}"
            if len(self.project) > _LONGEST_PROJECT:
                given = f"given a name of {len(self.project)} characters"
            yield Problem(
                "logger.project",
                given,
                f"1 to {_LONGEST_PROJECT} characters, none of {' '.join(_NOT_IN_PROJECTS)}",
                "logger.entity=<team> for the part before a slash" if "/" in forbidden else "",
            )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EvaluationSettings:
    """How much is drawn, and when.

    Attributes:
        every: optimizer steps between evaluations during training; 0 for none.
        during: conditions per evaluation set during training.
        final: conditions per set at the end, the first ones; ``None`` for all. Of 200, a share of one
            half has a 95 % interval of ± 7 %.
        votes: samples per condition for the vote; 0 for none.
        vote_temperature: of those samples; 0 is greedy.
        singles: samples per condition at temperature 1.
        singles_during: the same on the way; ``None`` for as many.
        batch: conditions evaluated at once.
        rows: strings drawn at once, at most.
        memory_gib: GiB that they may need; fewer are drawn at once where a string needs more than
            ``memory_gib`` / ``rows``: 24 bytes for every token of the vocabulary, and twice the keys and
            values of its prompt and of ``task.eval_max_len`` tokens.
        encoder: of texts, for their diversity: ``words`` (hashed word counts, offline), ``minilm``
            (all-MiniLM-L6-v2 from a package, offline), or a sentence encoder's path or hub id (the
            paper's: sentence-transformers/all-mpnet-base-v2).
        bertscore: model of BERTScore against references, in the final evaluation; ``None`` for none.
        judge: a language model that rates samples in the final evaluation; ``None`` for none.
        baseline_shots: numbers of worked examples with which the base model is evaluated; empty for
            no baseline; ``None`` for the task's own.
        baseline_temperatures: temperatures below or above 1 at which the base model is evaluated too,
            token by token, bare.
        baseline_limit: conditions per set for all that; ``None`` for all.
        resampled: draws per condition of the base model from which its posterior is resampled by
            importance, as a picture of exact sampling; 0 for none.
    """

    every: Annotated[int, Field(ge=0)] = 50
    during: Annotated[int, Field(ge=1)] = 40
    final: Annotated[int, Field(ge=1)] | None = 200
    votes: Annotated[int, Field(ge=0)] = 10
    vote_temperature: Annotated[float, Field(ge=0)] = 0.1
    singles: Annotated[int, Field(ge=1)] = 2
    singles_during: Annotated[int, Field(ge=1)] | None = None
    batch: Annotated[int, Field(ge=1)] = 25
    rows: Annotated[int, Field(ge=1)] = 2048
    memory_gib: Annotated[float, Field(gt=0)] = 2.0
    encoder: Annotated[str, LocalPath((WORDS, MINILM))] = WORDS
    bertscore: Annotated[str, LocalPath()] | None = None
    judge: JudgeSettings | None = None
    baseline_shots: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    baseline_temperatures: tuple[Annotated[float, Field(gt=0)], ...] = ()
    baseline_limit: Annotated[int, Field(ge=1)] | None = None
    resampled: Annotated[int, Field(ge=0)] = 0

    def problems(self) -> Iterator[Problem]:
        """What is impossible in the optional metrics, seen without a model."""
        if self.judge is not None:
            yield from self.judge.problems(FIELDS)
        if self.encoder != WORDS:
            yield from sentence_model_problems(self.encoder)

    def shots(self, task: Task) -> tuple[int, ...]:
        """Numbers of worked examples for the prompting baseline of a task."""
        return task.default_shots if self.baseline_shots is None else self.baseline_shots


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class EMSettings:
    """How often, and how, the answer model is trained.

    Attributes:
        rounds: of an E-step (``trainer.max_steps`` optimizer steps of GFlowNet training) and an M-step;
            0 is GFlowNet training alone.
        m_steps: optimizer steps of an M-step.
        m_lr: their learning rate (AdamW, no weight decay).
        m_batch: conditions of a step, each with a fresh sample of the policy.
        lora: the answer adapter.
    """

    rounds: Annotated[int, Field(ge=0)] = 0
    m_steps: Annotated[int, Field(ge=1)] = 100
    m_lr: Annotated[float, Field(gt=0)] = 1e-4
    m_batch: Annotated[int, Field(ge=1)] = 16
    lora: LoraSettings = Field(default_factory=LoraSettings)


def em_problems(options: EMSettings, conditions: Sequence[Condition]) -> Iterator[Problem]:
    """What an M-step cannot learn from."""
    without = [c.key for c in conditions if not (c.terms and c.terms[0].suffix)]
    if options.rounds and without:
        yield Problem(
            "em.rounds",
            f"given {options.rounds}, but {len(without)} training conditions have no answer behind "
            f"their samples (the suffix of the first term), e.g. {without[0]!r}",
            "0 for this task",
        )
