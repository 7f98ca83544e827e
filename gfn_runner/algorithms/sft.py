"""Supervised fine-tuning: cross-entropy of known strings, or of the right answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.baselines.direct import answer_directly, answers_directly
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, TaskData
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Batch, PolicyScores, StepOutput, Trajectories
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.sampling import sample, with_tool
from gfn_runner.lm.scoring import score_policy, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.objectives.phi import phi, terminal_states
from gfn_runner.runtime.local_paths import LocalPath
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.runtime.status import ProgressLogger

if TYPE_CHECKING:
    from gfn_runner.tasks.base import GFlowNetModule

_AT_ONCE = 16  # conditions sampled together
_String = tuple[Sequence[int], Sequence[bool]]


class SFT(Algorithm):
    """Supervised fine-tuning of the adapter on strings that are known to be good.

    These are the task's own (``Task.targets``), or samples for each prompt from a policy that another run
    has trained. Without such samples, if the task's answers can be given directly (a label right after the
    prompt), the right answer is learned instead, and evaluation asks for it directly.

    Args:
        samples_of: folder of a finished run whose policy writes the strings; ``None`` for the task's own.
        n_samples: samples of that policy per training condition.
        right_only: learn only those of its strings that lead to the right answer; a condition without one
            is replaced by another that has one.
        n_strings: strings per condition of a step, drawn from the known ones.

    Attributes:
        written: strings of the other run's policy by condition key, each with a mask of its actions;
            empty if the task's own strings are learned.
    """

    label: ClassVar[str] = "SFT"

    def __init__(
        self,
        samples_of: Annotated[str, LocalPath()] | None = None,
        n_samples: Annotated[int, Field(ge=1)] = 4,
        right_only: bool = False,
        n_strings: Annotated[int, Field(ge=1)] = 1,
    ) -> None:
        super().__init__()
        self.samples_of, self.n_samples, self.right_only = samples_of, n_samples, right_only
        self.n_strings = n_strings
        self.written: dict[str, list[_String]] = {}

    def problems(self) -> Iterator[Problem]:
        if self.samples_of is not None and not (Path(self.samples_of) / "adapter").is_dir():
            yield Problem(
                "baseline.samples_of",
                f"given {self.samples_of!r}, which holds no adapter/",
                "the folder of a finished run that trained a policy",
            )
        if self.right_only and self.samples_of is None:
            yield Problem(
                "baseline.right_only",
                "given true without baseline.samples_of: the task's own strings are right",
                "false, or true with baseline.samples_of=<run folder>",
            )

    def unfit(self, task: Task, data: TaskData) -> Iterator[Problem]:
        if not self.trained_on(task, data.train):
            yield Problem(
                "baseline",
                f"sft, but task {task.name} has no strings to learn from",
                "a task with demonstrations or references, or baseline.samples_of=<run folder>",
            )
        if self.right_only and data.train and task.is_right(data.train[0], "") is None:
            yield Problem(
                "baseline.right_only",
                f"given true, but task {task.name} does not tell right strings from wrong ones",
                "false for this task",
            )

    def trained_on(self, task: Task, conditions: Sequence[Condition]) -> Sequence[Condition]:
        if self.samples_of is not None:
            return conditions
        return [c for c in conditions if task.direct_choices(c) or task.targets(c)]

    def on_fit_start(self, module: GFlowNetModule) -> None:
        if self.samples_of is not None and not self.written:
            self.written = self._written(module, Path(self.samples_of) / "adapter")
            if not self.written:
                raise UserError.one(
                    "baseline.right_only",
                    f"no string of the policy of {self.samples_of} leads to the right answer",
                    "a policy that is right at least sometimes",
                    "baseline.n_samples=<more>, or baseline.right_only=false",
                )

    @torch.no_grad()
    def _written(self, module: GFlowNetModule, adapter: Path) -> dict[str, list[_String]]:
        """Sample strings for every training condition from the policy of a saved adapter."""
        n, lm = self.n_samples, module.lm
        written: dict[str, list[_String]] = {}
        count = ProgressLogger("strings of the other run's policy", len(module.conditions))
        with lm.in_step(), lm.adapter_of(adapter), count:
            for start in range(0, len(module.conditions), _AT_ONCE):
                part = module.conditions[start : start + _AT_ONCE]
                generator = torch_generator_for(lm.device, "teacher", module.seed, start)
                prompts = module.prompts(part)
                rows = sample(lm, prompts, n, module.rule, generator, tool=module.tool())
                for place, condition in enumerate(part):
                    own: list[_String] = [
                        (rows.ids(row), rows.is_action_BT[row, : len(rows.ids(row))].tolist())
                        for row in range(place * n, (place + 1) * n)
                    ]
                    if self.right_only:
                        own = [s for s in own if module.is_right(condition, lm.decode(s[0]))]
                    if own:
                        written[condition.key] = own
                count.advance(len(part))
        return written

    def training_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        if answers_directly(module, batch.conditions) and not self.written:
            with module.phases("policy"):
                loss = answer_loss(module, batch.conditions)
            return {"loss": loss, "output": _nothing_written(batch.conditions, module.lm.device)}
        return self.string_step(module, batch)

    def string_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        """Run a training step on known strings, even where the answer could be learned directly."""
        conditions, lm = self._with_strings(module, batch), module.lm
        trajectories = self._strings(module, conditions, batch.index)
        # Long enough for the strings and one more token, so that their ends are learned, not forced.
        longest = int(trajectories.is_action_BT.sum(dim=1).max()) + 1
        rule = dataclasses.replace(module.rule, max_len=max(module.rule.max_len, longest))
        with module.phases("policy"):
            scores = score_policy(lm, module.prompts(conditions), trajectories, rule)
        loss = cross_entropy(scores, trajectories, rule)
        unknown_BS = torch.full_like(scores.log_pf_stop_BS, math.nan)
        output = step_output(conditions, trajectories, unknown_BS, scores, has_rewards=False)
        return {"loss": loss, "output": output}

    def _with_strings(self, module: GFlowNetModule, batch: Batch) -> list[Condition]:
        """Return the batch's conditions; others replace those without a string to learn."""

        def known(condition: Condition) -> bool:
            return (
                condition.key in self.written if self.written else bool(module.targets(condition))
            )

        if all(map(known, batch.conditions)):
            return batch.conditions
        others = [c for c in module.conditions if known(c)]
        rng = rng_for("with-strings", module.seed, batch.index)
        return [c if known(c) else rng.choice(others) for c in batch.conditions]

    def _strings(
        self, module: GFlowNetModule, conditions: Sequence[Condition], index: int
    ) -> Trajectories:
        """Draw ``n_strings`` known strings for each condition."""
        rng = rng_for("sft", module.seed, index)
        rows = []
        for place, condition in enumerate(conditions):
            written = self.written.get(condition.key)
            for _ in range(self.n_strings):
                if written:
                    tokens, actions = rng.choice(written)
                else:
                    text = rng.choice(list(module.targets(condition)))
                    tokens, actions = with_tool(module.lm, text, module.tool())
                rows.append((tokens, actions, place))
        strings, chosen, places = zip(*rows, strict=True)
        return Trajectories.from_rows(strings, chosen, places, module.lm.device)

    def validation_step(self, module: GFlowNetModule, batch: Batch) -> list[ConditionSamples]:
        """Return direct answers where these were learned, else samples."""
        if not self.learns_answers(module, batch.conditions):
            return super().validation_step(module, batch)
        return answer_directly(module.drawing(batch.conditions), shots=0)

    def learns_answers(self, task: Task, conditions: Sequence[Condition]) -> bool:
        """Return whether the policy learns to answer right after the prompt, without a sample."""
        return self.samples_of is None and answers_directly(task, conditions)


def answer_loss(module: GFlowNetModule, conditions: Sequence[Condition]) -> Tensor:
    """Return the mean −log p(right answer | prompt), in nats per answer."""

    def right(condition: Condition) -> str:
        answers = [answer for _, answer in module.answer_choices(condition, ())]
        return module.direct_choices(condition)[answers.index(condition.answer)]

    lm = module.lm
    empty = Trajectories.empty(len(conditions), lm.device)
    answers = [lm.encode(right(condition)) for condition in conditions]
    given = GivenStrings(module.prompts(conditions), answers, empty, module.rule)
    return -score_suffixes(lm, given).mean()


def cross_entropy(scores: PolicyScores, trajectories: Trajectories, rule: StringRule) -> Tensor:
    """Return −log q of strings and their ends, in nats per chosen token.

    A tool's tokens and forced ends are not chosen: they have log q = 0 and do not count.
    """
    log_stop_B = trajectories.at_ends(scores.log_pf_stop_BS)
    # Not detected by log q = 0, to which an almost certain end is rounded too.
    forced_B = trajectories.at_ends(rule.forced_BS(trajectories))
    chosen = trajectories.is_action_BT.sum() + (~forced_B).sum()
    return -(scores.log_pf_BT.sum() + log_stop_B.sum()) / chosen.clamp(min=1)


def step_output(
    conditions: list[Condition],
    trajectories: Trajectories,
    log_reward_BS: Tensor,
    scores: PolicyScores,
    reward_temperature: float = 1.0,
    *,
    from_replay: bool = True,
    exploration_temperature: float = math.nan,
    has_rewards: bool = True,
) -> StepOutput:
    """Return the output of a step on whole strings for the callbacks; φ is set only at their ends."""
    detached = dataclasses.replace(
        scores,
        log_pf_BT=scores.log_pf_BT.detach(),
        log_pf_stop_BS=scores.log_pf_stop_BS.detach(),
        terminable_BS=terminal_states(scores.terminable_BS, trajectories.length_B),
        value_BS=None,
    )
    phi_BS = phi(detached, log_reward_BS, reward_temperature)
    return StepOutput(
        conditions,
        trajectories,
        log_reward_BS,
        detached,
        phi_BS,
        from_replay,
        exploration_temperature,
        has_rewards,
    )


def _nothing_written(conditions: list[Condition], device: torch.device) -> StepOutput:
    """Return the output of a step without strings."""
    empty = Trajectories.empty(len(conditions), device)
    unknown_BS = torch.full((len(conditions), 1), math.nan, device=device)
    scores = PolicyScores(
        torch.zeros(len(conditions), 0, device=device),
        torch.zeros_like(unknown_BS),
        torch.ones_like(unknown_BS, dtype=torch.bool),
    )
    return StepOutput(conditions, empty, unknown_BS, scores, unknown_BS, True, math.nan, False)
