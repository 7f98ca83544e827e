"""Supervised fine-tuning: the adapter learns to write given strings, or the right answer at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfn_runner.baselines.direct import answer_directly, answers_directly
from gfn_runner.baselines.methods import SFT
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Batch, PolicyScores, StepOutput, Trajectories
from gfn_runner.lm.sampling import sample, with_tool
from gfn_runner.lm.scoring import score_policy, score_suffixes
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.module import GFlowNetModule
from gfn_runner.objectives.phi import phi, terminal_states
from gfn_runner.rewards.reward import terminal_log_reward
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.runtime.status import Count

_AT_ONCE = 16  # conditions sampled together
_String = tuple[Sequence[int], Sequence[bool]]


class SupervisedModule(GFlowNetModule):
    """Cross-entropy of one known string for each condition of a batch, drawn anew each time.

    Attributes:
        baseline: its settings.
        written: strings of another run's policy by condition key, each with what of it the policy chose;
            empty where the task's own are learnt.
    """

    def __init__(
        self, *args: Any, conditions: list[Condition], baseline: SFT, **options: Any
    ) -> None:
        super().__init__(*args, conditions=conditions, **options)
        self.baseline, self.conditions = baseline, conditions
        self.written: dict[str, list[_String]] = {}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.baseline.samples_of is not None and not self.written:
            self.written = self._written(Path(self.baseline.samples_of) / "adapter")

    @torch.no_grad()
    def _written(self, adapter: Path) -> dict[str, list[_String]]:
        """What the policy of an adapter writes for every training condition."""
        n = self.baseline.n_samples
        written: dict[str, list[_String]] = {}
        count = Count("strings of the other run's policy", len(self.conditions))
        with self.lm.in_step(), self.lm.adapter_of(adapter), count:
            for start in range(0, len(self.conditions), _AT_ONCE):
                part = self.conditions[start : start + _AT_ONCE]
                prompts = [self.lm.encode_prompt(condition.prompt) for condition in part]
                generator = torch_generator_for(self.lm.device, "teacher", self.seed, start)
                rows = sample(self.lm, prompts, n, self.rule, generator, tool=self.task.tool())
                for place, condition in enumerate(part):
                    own = range(place * n, (place + 1) * n)
                    written[condition.key] = [
                        (rows.ids(row), rows.is_action_BT[row, : len(rows.ids(row))].tolist())
                        for row in own
                    ]
                count.advance(len(part))
        return written

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        conditions = batch.conditions
        if answers_directly(self.task, conditions) and not self.written:
            with self.phases("policy"):
                loss = self._answer_loss(conditions)
            output = _nothing_written(conditions, self.lm.device)
        else:
            trajectories = self._strings(conditions, batch.index)
            prompts = [self.lm.encode_prompt(condition.prompt) for condition in conditions]
            # Long enough for the strings and one more token, so that their ends are learnt, not forced.
            longest = int(trajectories.is_action_BT.sum(dim=1).max()) + 1
            rule = dataclasses.replace(self.rule, max_len=max(self.rule.max_len, longest))
            with self.phases("reward"):
                log_reward_BS = terminal_log_reward(
                    self.lm, conditions, trajectories, rule, self.task.constraints()
                )
            with self.phases("policy"):
                scores = score_policy(self.lm, prompts, trajectories, rule)
            loss = cross_entropy(scores, trajectories, rule)
            output = step_output(
                conditions, trajectories, log_reward_BS, scores, self.reward_temperature
            )
        self.last_output = output
        return {"loss": loss, "output": output}

    def _strings(self, conditions: Sequence[Condition], index: int) -> Trajectories:
        """One string for each condition."""
        rng = rng_for("sft", self.seed, index)
        rows = []
        for condition in conditions:
            if condition.key in self.written:
                rows.append(rng.choice(self.written[condition.key]))
            else:
                text = rng.choice(list(self.task.targets(condition)))
                rows.append(with_tool(self.lm, text, self.task.tool()))
        tokens, actions = zip(*rows, strict=True)
        return Trajectories.from_rows(tokens, actions, range(len(rows)), self.lm.device)

    def _answer_loss(self, conditions: Sequence[Condition]) -> Tensor:
        """Mean −log p(right answer | prompt), nats an answer."""
        prompts = [self.lm.encode_prompt(condition.prompt) for condition in conditions]
        answers = [self.lm.encode(self.task.direct_choices(c)[self._right(c)]) for c in conditions]
        none: list[tuple[()]] = [()] * len(conditions)
        empty = Trajectories.from_rows(none, none, range(len(conditions)), self.lm.device)
        return -score_suffixes(self.lm, prompts, answers, empty, self.rule).mean()

    def _right(self, condition: Condition) -> int:
        answers = [answer for _, answer in self.task.answer_choices(condition, ())]
        return answers.index(condition.answer)

    def validation_step(self, batch: Batch, batch_idx: int) -> list[ConditionSamples]:  # type: ignore[override]
        """Answers at once where they were learnt so; samples else."""
        if not answers_directly(self.task, batch.conditions) or self.baseline.samples_of:
            return super().validation_step(batch, batch_idx)
        with self.phases("evaluation"):
            return answer_directly(
                self.lm,
                self.task,
                self.evaluation_rule,
                batch.conditions,
                shots=0,
                batch=self.evaluation.batch,
                seed=self.seed,
            )


def cross_entropy(scores: PolicyScores, trajectories: Trajectories, rule: StringRule) -> Tensor:
    """−log q of strings and their ends, in nats a chosen token.

    A tool's tokens and an end that is forced are not chosen: they have log q = 0 and do not count.
    """
    ends_B1 = trajectories.length_B[:, None]
    log_stop_B = scores.log_pf_stop_BS.gather(1, ends_B1)[:, 0]
    # Not by log q: that of an end which is all but certain rounds to 0 too.
    forced_B = rule.forced_BS(trajectories).gather(1, ends_B1)[:, 0]
    chosen = trajectories.is_action_BT.sum() + (~forced_B).sum()
    return -(scores.log_pf_BT.sum() + log_stop_B.sum()) / chosen.clamp(min=1)


def step_output(
    conditions: list[Condition],
    trajectories: Trajectories,
    log_reward_BS: Tensor,
    scores: PolicyScores,
    reward_temperature: float,
    *,
    from_replay: bool = True,
    exploration_temperature: float = float("nan"),
) -> StepOutput:
    """What a step on whole strings leaves for the callbacks; φ at the strings' ends alone."""
    detached = dataclasses.replace(
        scores,
        log_pf_BT=scores.log_pf_BT.detach(),
        log_pf_stop_BS=scores.log_pf_stop_BS.detach(),
        terminable_BS=terminal_states(scores.terminable_BS, trajectories.length_B),
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
    )


def _nothing_written(conditions: list[Condition], device: torch.device) -> StepOutput:
    """Of a step without strings: log R and φ are unknown."""
    none: list[tuple[()]] = [()] * len(conditions)
    empty = Trajectories.from_rows(none, none, range(len(conditions)), device)
    unknown_BS = torch.full((len(conditions), 1), float("nan"), device=device)
    scores = PolicyScores(
        torch.zeros(len(conditions), 0, device=device),
        torch.zeros_like(unknown_BS),
        torch.ones_like(unknown_BS, dtype=torch.bool),
    )
    return StepOutput(conditions, empty, unknown_BS, scores, unknown_BS, True, float("nan"))
