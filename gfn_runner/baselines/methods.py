"""What a run may do in place of GFlowNet training: the settings of every baseline; computes nothing.

A baseline is chosen by ``baseline=…`` beside any task. It shares the task's data, evaluation and folder,
so that its numbers stand in the same columns. Some train an adapter of their own (SFT, PPO, GRPO): they
name a Lightning module. The others train nothing and give rows: names and samples of a method. What they
compute with is imported when it is used, so that a config is checked fast.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.local_paths import LocalPath
from gfn_runner.runtime.seeds import rng_for
from gfn_runner.tasks.base import Task

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel
    from gfn_runner.lm.vocabulary import StringRule

DECODERS = ("greedy", "beam", "diverse_beam", "sampling", "tempered", "nucleus", "top_k")
Rows = Iterator[tuple[str, list[ConditionSamples]]]


@dataclass(frozen=True)
class Drawing:
    """What the rows of a baseline are drawn with; the same as for a policy.

    Attributes:
        lm, task, rule, conditions, options: of the evaluation.
        seed: of everything drawn.
        temperature: reward temperature of the posterior.
    """

    lm: LanguageModel
    task: Task
    rule: StringRule
    conditions: Sequence[Condition]
    options: EvaluationSettings
    seed: int
    temperature: float


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Baseline(ABC):
    """A method to be compared with.

    Attributes:
        label: what a table calls it.
        lightning_module: import path of the module that trains it; ``None`` where nothing is trained.
        row_maker: import path of what draws its rows where nothing is trained, called with a
            :class:`Drawing` and the settings.
        needs_pairs_between: whether a condition with a single trajectory teaches nothing.
    """

    label: ClassVar[str]
    needs_pairs_between: ClassVar[bool] = False
    lightning_module: ClassVar[str | None] = None
    row_maker: ClassVar[str | None] = None

    def problems(self) -> Iterator[Problem]:
        """What is impossible in the settings alone."""
        yield from ()

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        """What of a task this baseline cannot do."""
        yield from ()

    def trained_on(self, task: Task, conditions: Sequence[Condition]) -> Sequence[Condition]:
        """The training conditions that it can learn from."""
        return conditions


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Prompting(Baseline):
    """The base model behind worked examples, drawn anew for each seed and question.

    Attributes:
        shots: numbers of examples; those that do not fit the model's context are left out, with a line
            in the log.
    """

    shots: tuple[Annotated[int, Field(ge=0)], ...] = (0, 3, 5, 10, 20)

    label: ClassVar[str] = "prompting"
    row_maker: ClassVar[str | None] = "gfn_runner.baselines.rows.prompted_rows"

    def problems(self) -> Iterator[Problem]:
        if not self.shots:
            yield Problem("baseline.shots", "given none", "at least one number of examples")

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        most = max(self.shots, default=0)
        for condition in data.evaluation[: 1 if most else 0]:
            try:
                task.few_shot_prompt(condition, most, rng_for("check"))
            except UserError as error:
                yield from (replace(p, where="baseline.shots") for p in error.problems)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Decoding(Baseline):
    """Decoders of the base model, each also with more compute.

    A decoder with more compute draws ``compute`` times as many strings (or beams) and keeps the likeliest
    different ones under log R.

    Attributes:
        decoders: some of ``DECODERS``.
        compute: how many times as many; 1 for no such rows.
        temperature: of ``tempered``.
        top_p, top_k: of ``nucleus`` and ``top_k``.
        diversity_penalty: nats, of ``diverse_beam``, for every earlier group that chose the token
            (Vijayakumar et al. 2016, arXiv:1610.02424); every group has one beam.
    """

    decoders: tuple[str, ...] = DECODERS
    compute: Annotated[int, Field(ge=1)] = 5
    temperature: Annotated[float, Field(gt=0)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Field(ge=1)] = 50
    diversity_penalty: Annotated[float, Field(ge=0)] = 1.0

    label: ClassVar[str] = "decoding"
    row_maker: ClassVar[str | None] = "gfn_runner.baselines.decoding.decoder_rows"

    def problems(self) -> Iterator[Problem]:
        unknown = [name for name in self.decoders if name not in DECODERS]
        if unknown or not self.decoders:
            yield Problem(
                "baseline.decoders", f"given {list(self.decoders)}", f"some of {list(DECODERS)}"
            )

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        if task.tool() is not None:
            yield Problem(
                "baseline",
                f"decoding for task {task.name} with a tool, whose answers a decoder does not wait for",
                "a task without a tool, e.g. task.calculator=false",
            )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Resampling(Baseline):
    """What one would do without training: n draws of the base model, the best or some by importance.

    Attributes:
        draws: numbers n of draws per condition; each number uses the first n of the same draws.
        answers_known: whether the posterior may speak of the answer of a test question (a rationale that
            leads to the known answer, as in training). Off, it is p(Z ⊤ | X), which is all that one has
            when the answer is asked for. It changes nothing where samples have no answer.
    """

    draws: tuple[Annotated[int, Field(ge=1)], ...] = (1, 4, 16, 64, 256)
    answers_known: bool = False

    label: ClassVar[str] = "resampling"
    row_maker: ClassVar[str | None] = "gfn_runner.baselines.resampling.resampled_rows"

    def problems(self) -> Iterator[Problem]:
        if not self.draws:
            yield Problem("baseline.draws", "given none", "at least one number of draws")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Exact(Baseline):
    """Samples of the true posterior, for tasks that can list their strings: the ceiling."""

    label: ClassVar[str] = "exact"
    row_maker: ClassVar[str | None] = "gfn_runner.baselines.exact.exact_rows"

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        without = [c.key for c in data.evaluation if not task.support(c)]
        if without:
            yield Problem(
                "baseline",
                f"exact, but task {task.name} cannot list the strings of {len(without)} conditions, "
                f"e.g. {without[0]!r}",
                "a task that lists them (random_number), or baseline=resampling for the limit of many "
                "draws",
            )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SFT(Baseline):
    """Supervised fine-tuning of the adapter on strings that are known to be good.

    These are the task's own (``Task.targets``); or samples of a policy that another run has trained, one
    prompt at a time. Where a task's answers can be given at once (a label right behind the prompt), it is
    the right answer that is learnt, and evaluation asks for it at once.

    Attributes:
        samples_of: folder of a finished run whose policy writes the strings; ``None`` for the task's own.
        n_samples: of that policy, for each training condition.
    """

    samples_of: Annotated[str, LocalPath()] | None = None
    n_samples: Annotated[int, Field(ge=1)] = 4

    label: ClassVar[str] = "SFT"
    lightning_module: ClassVar[str | None] = "gfn_runner.algorithms.sft.SupervisedModule"

    def problems(self) -> Iterator[Problem]:
        if self.samples_of is not None and not (Path(self.samples_of) / "adapter").is_dir():
            yield Problem(
                "baseline.samples_of",
                f"given {self.samples_of!r}, which holds no adapter/",
                "the folder of a finished run that trained a policy",
            )

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        if not self.trained_on(task, data.train):
            yield Problem(
                "baseline",
                f"sft, but task {task.name} knows no string to learn from",
                "a task with demonstrations or references, or baseline.samples_of=<run folder>",
            )

    def trained_on(self, task: Task, conditions: Sequence[Condition]) -> Sequence[Condition]:
        if self.samples_of is not None:
            return conditions
        return [c for c in conditions if task.direct_choices(c) or task.targets(c)]


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class PolicyGradient(Baseline):
    """What PPO and GRPO share: rollouts of the policy itself, each used for some updates.

    The reward is ``reward_scale`` · log R of the whole string, untempered, in nats; strings of reward 0
    get ``reward_floor``.

    Attributes:
        epochs: optimizer steps on each rollout of ``sampling.conditions`` × ``sampling.samples`` strings.
        clip: the ratio of new to old probability counts up to 1 ± this.
        kl_weight: of the KL divergence to the base model, in reward per nat.
        reward_scale: reward per nat of log R.
        reward_floor: nats.
    """

    epochs: Annotated[int, Field(ge=1)] = 4
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    kl_weight: Annotated[float, Field(ge=0)] = 0.05
    reward_scale: Annotated[float, Field(gt=0)] = 1.0
    reward_floor: float = -100.0


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class PPO(PolicyGradient):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) with a value head.

    The KL penalty is part of the reward of every token (Ziegler et al. 2019, arXiv:1909.08593);
    advantages are generalised estimates (Schulman et al. 2015, arXiv:1506.02438), whitened over the
    rollout; the discount is 1.

    Advantages are whitened: as long as ``kl_weight`` keeps its ratio to it, the reward's scale moves the
    value loss, and how soon the head is right, not the policy's own gradient. At scale 1 that loss is in
    the hundreds where log R differs by tens of nats between strings, and its gradient in the adapter
    drowns the policy's: hence a tenth.

    Attributes:
        gae_lambda: of the advantage estimates.
        value_weight: of the value loss ½ (V − return)².
        value_lr: learning rate of the value head.
    """

    kl_weight: Annotated[float, Field(ge=0)] = 0.005
    reward_scale: Annotated[float, Field(gt=0)] = 0.1
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    value_weight: Annotated[float, Field(ge=0)] = 0.1
    value_lr: Annotated[float, Field(gt=0)] = 1e-3

    label: ClassVar[str] = "PPO"
    lightning_module: ClassVar[str | None] = "gfn_runner.algorithms.policy_gradient.PPOModule"


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class GRPO(PolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): no value head.

    A string's advantage is its reward against the mean of its condition's strings, in their standard
    deviations. The KL divergence to the base model is part of the loss, estimated for every token by
    e^d − d − 1, d = log p − log q.
    """

    kl_weight: Annotated[float, Field(ge=0)] = 0.04

    label: ClassVar[str] = "GRPO"
    needs_pairs_between: ClassVar[bool] = True
    lightning_module: ClassVar[str | None] = "gfn_runner.algorithms.policy_gradient.GRPOModule"
