"""Replay: add fresh trajectories to the buffer, and attach draws from it to batches."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence

from gfn_runner.callbacks.demonstrations import (
    Written,
    fitting_demonstrations,
    written_demonstrations,
)
from gfn_runner.data.conditions import Condition
from gfn_runner.data.datamodule import own_conditions
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.data.trajectories import Batch, ReplayDraw, StepOutput, Trajectories
from gfn_runner.distributed.ranks import all_gather, is_rank_zero, rank, world
from gfn_runner.errors import Problem
from gfn_runner.evaluation.posterior import PosteriorSampler
from gfn_runner.runtime.seeds import rng_for, torch_generator_for
from gfn_runner.runtime.status import ProgressLogger
from gfn_runner.tasks.base import GFlowNetModule

logger = logging.getLogger(__name__)
_AT_ONCE = 16  # conditions scored in one batch


class ReplayBufferCallback(L.Callback):
    """Manages the replay buffer.

    On a replay step, conditions of the batch that have strings in the buffer are kept; the others are
    replaced by conditions drawn from the buffer, so that all steps have equally many conditions once the
    buffer holds enough. Each condition contributes at most ``n_samples`` distinct strings.

    Every rank has a buffer for its own conditions. A checkpoint contains all of them, so a run can be resumed
    with a different number of ranks.

    Args:
        probability: share of training steps that use the buffer; 0 disables it.
        capacity, tolerance, priority: see :class:`~gfn_runner.data.replay_buffer.ReplayBuffer`.
        seed_demonstrations: whether to add the conditions' demonstrations before the first step.
        posterior_draws: base model draws, after each of the policy's prompt and the posterior's own context,
            made when a condition is first replayed; strings resampled from them by importance are added to
            the buffer. 0 for none.
        beside_fresh: buffer strings per condition that are added to the fresh ones on a replay step; 0
            replaces the fresh ones.

    Attributes:
        buffer: strings by condition key.
        conditions: conditions of this rank, by key.
    """

    def __init__(
        self,
        probability: Annotated[float, Field(ge=0, le=1)] = 0.25,
        capacity: Annotated[int, Field(ge=1)] = 50,
        tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.25,
        priority: Annotated[float, Field(ge=0)] = 0.0,
        seed_demonstrations: bool = True,
        posterior_draws: Annotated[int, Field(ge=0)] = 0,
        beside_fresh: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        self.probability, self.seed_demonstrations = probability, seed_demonstrations
        self.posterior_draws, self.beside_fresh = posterior_draws, beside_fresh
        self._empty_buffer = partial(ReplayBuffer, capacity, tolerance, priority)
        self.buffer = self._empty_buffer()
        self._all: dict[str, Condition] = {}
        self.conditions: dict[str, Condition] = {}
        # Number of M-steps of the model that computed the stored log-rewards.
        self.m_steps = 0
        self._drawn: set[str] = set()  # conditions whose base model draws were stored

    @property
    def active(self) -> bool:
        return self.probability > 0

    def problems(self) -> Iterator[Problem]:
        """Yield the problems of the settings."""
        others = self.seed_demonstrations or self.posterior_draws or self.beside_fresh
        if self.probability == 1 and not others:
            yield Problem(
                "callbacks.replay_buffer.probability",
                "given 1: without seed_demonstrations, posterior_draws or beside_fresh nothing enters the buffer",
                "below 1, or one of these three",
            )

    def setup(self, trainer: L.Trainer, module: GFlowNetModule, stage: str) -> None:
        self._all = {c.key: c for c in module.conditions}
        self.conditions = {c.key: c for c in own_conditions(module.conditions)}

    def on_fit_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        with module.lm.in_step():
            self._fill(module)
        self.m_steps = module.lm.m_steps

    def _fill(self, module: GFlowNetModule) -> None:
        # In a resumed run, the buffer has been restored by now.
        if self.active and self.seed_demonstrations and not len(self.buffer):
            written = self._written(module)
            seeds = [c for c in self.conditions.values() if c.demonstrations or written.get(c.key)]
            with ProgressLogger("rewards of demonstrations", len(seeds)) as count:
                for start in range(0, len(seeds), _AT_ONCE):
                    own = seeds[start : start + _AT_ONCE]
                    self._seed(module, own, written)
                    count.advance(len(own))
        elif self.m_steps != module.lm.m_steps:
            self._rescore(module)

    def _written(self, module: GFlowNetModule) -> Written:
        """Return the demonstrations generated by the base model, by condition key."""
        conditions = list(self.conditions.values())
        asked = [(c, module.demonstration_prompt(c)) for c in conditions]
        written: Written = {}
        with ProgressLogger("demonstrations by the base model", len(asked)) as count:
            for start in range(0, len(asked), _AT_ONCE):
                own = asked[start : start + _AT_ONCE]
                part = {c.key: prompt for c, prompt in own if prompt}
                generator = torch_generator_for(module.lm.device, "write", module.seed, start)
                written |= written_demonstrations(module.lm, part, module.rule, generator)
                count.advance(len(own))
        return written

    @torch.no_grad()
    def _rescore(self, module: GFlowNetModule) -> None:
        """Recompute the log-reward of every string under the current answer model.

        The strings remain useful: most good ones are still good, log q is recomputed whenever they are used,
        and strings found once need not be found again.
        """
        old, self.buffer = self.buffer, self._empty_buffer()
        keys = old.keys()
        for start in range(0, len(keys), _AT_ONCE):
            conditions = [self.conditions[key] for key in keys[start : start + _AT_ONCE]]
            rows = [(e, at) for at, c in enumerate(conditions) for e in old.entries(c.key)]
            trajectories = _trajectories(rows, module.lm.device)
            stored = [entry.step for entry, _ in rows]
            self._score_and_store(module, conditions, trajectories, stored)

    @torch.no_grad()
    def _seed(self, module: GFlowNetModule, conditions: list[Condition], written: Written) -> None:
        trajectories, n_unfit = fitting_demonstrations(module, conditions, written)
        if n_unfit:
            logger.warning(
                "%d of %d demonstrations are not strings that the policy can write (task.min_len = %d, "
                "task.max_len = %d, no task.terminator within) and are left out of the replay buffer",
                n_unfit,
                n_unfit + len(trajectories),
                module.rule.min_len,
                module.rule.max_len,
            )
        if len(trajectories):
            self._score_and_store(module, conditions, trajectories, [0] * len(trajectories))

    def on_train_batch_start(
        self, trainer: L.Trainer, module: GFlowNetModule, batch: Batch, batch_idx: int
    ) -> None:
        if module.in_sft_steps:
            return
        # All ranks sample or all replay: otherwise those that replay would wait for those that sample.
        turn = rng_for("replay", module.seed, batch.index // world())
        if not self.active or turn.random() >= self.probability:
            return
        if self.posterior_draws:
            self._draw_posterior(trainer, module, batch)
        rng = turn if rank() == 0 else rng_for("replay", module.seed, batch.index, "rank", rank())
        beside = self.beside_fresh
        if beside:
            batch.replay = self._drawn_from_buffer(module, batch.conditions, beside, rng)
            return
        # If only distinct trajectories are compared, a single string gives no loss.
        known = self.buffer.keys(at_least=2 if module.algorithm.needs_pairs_between else 1)
        if not known:
            return
        batch.conditions = self._with_strings(batch.conditions, set(known), rng)
        n = module.sampling.n_samples
        batch.replay = self._drawn_from_buffer(module, batch.conditions, n, rng)

    def _drawn_from_buffer(
        self,
        module: GFlowNetModule,
        conditions: Sequence[Condition],
        n: int,
        rng: random.Random,
    ) -> ReplayDraw | None:
        """Draw at most ``n`` strings per condition; return ``None`` if no condition has any."""
        rows = [
            (entry, place)
            for place, condition in enumerate(conditions)
            if self.buffer.entries(condition.key)
            for entry in self.buffer.sample(condition.key, n, rng)
        ]
        if not rows:
            return None
        rewards_BS = pad_sequence(
            [torch.tensor(entry.log_reward) for entry, _ in rows],
            batch_first=True,
            padding_value=float("-inf"),
        ).to(module.lm.device)
        trajectories = _trajectories(rows, module.lm.device)
        return ReplayDraw(trajectories, rewards_BS, bool(self.beside_fresh))

    @torch.no_grad()
    def _draw_posterior(self, trainer: L.Trainer, module: GFlowNetModule, batch: Batch) -> None:
        """Store posterior samples for conditions that have had none, resampled from base model draws."""
        new = [c for c in batch.conditions if c.key not in self._drawn]
        wanted = self.posterior_draws
        options = replace(module.evaluation, posterior_draws=wanted, posterior_limit=None)
        drawing = module.drawing(new).replace(rule=module.rule, options=options)
        sampler = PosteriorSampler(drawing)
        new = list(sampler.conditions.values())
        place_of = ("replay-draws", module.seed, batch.index)
        generator = torch_generator_for(module.lm.device, *place_of)
        # The number of new conditions may differ between ranks.
        with module.lm.in_step():
            parts = []
            for place, draws in enumerate(sampler.draw(new, generator) if new else ()):
                offset = rng_for(*place_of, place).random()
                kept = draws.resampled(self.buffer.capacity, module.reward_temperature, offset)
                rows = draws.strings.rows(kept.unique())
                parts.append(replace(rows, condition_B=torch.full_like(rows.condition_B, place)))
            if sum(map(len, parts)):
                trajectories = Trajectories.concatenated(parts)
                stored = [trainer.global_step] * len(trajectories)
                self._score_and_store(module, new, trajectories, stored)
        self._drawn.update(condition.key for condition in new)

    def _with_strings(
        self, conditions: list[Condition], known: set[str], rng: random.Random
    ) -> list[Condition]:
        kept = [condition for condition in conditions if condition.key in known]
        others = sorted(known - {condition.key for condition in kept})
        wanted = min(len(conditions) - len(kept), len(others))
        return kept + [self.conditions[key] for key in rng.sample(others, wanted)]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: GFlowNetModule, outputs: dict[str, Any], *_: Any
    ) -> None:
        output: StepOutput = outputs["output"]
        if self.active and not output.from_replay:
            now = [trainer.global_step] * len(output.trajectories)
            self._store(
                output.conditions,
                output.trajectories,
                output.log_reward_BS,
                output.scores.terminable_BS,
                now,
            )

    def _score_and_store(
        self,
        module: GFlowNetModule,
        conditions: Sequence[Condition],
        trajectories: Trajectories,
        stored: Sequence[int],
    ) -> None:
        terminable_BS = module.rule.terminable_BS(trajectories)
        read_BS = module.algorithm.counted_BS(terminable_BS, trajectories.length_B)
        rewards_BS = module.log_reward(conditions, trajectories)
        self._store(conditions, trajectories, rewards_BS, read_BS, stored)

    def _store(
        self,
        conditions: Sequence[Condition],
        trajectories: Trajectories,
        log_reward_BS: torch.Tensor,
        read_BS: torch.Tensor,
        stored: Sequence[int],
    ) -> None:
        """Add every row to the buffer; ``stored`` has the optimizer steps from which its age is counted.

        Rows with a non-finite log-reward that the objective uses (``read_BS``) are left out, since a step
        that drew one would be skipped.
        """
        sound_B = (log_reward_BS.isfinite() | ~read_BS).all(dim=1)
        places, strings = trajectories.condition_B.tolist(), trajectories.strings()
        actions, rewards = trajectories.is_action_BT.tolist(), log_reward_BS.tolist()
        for row in sound_B.nonzero()[:, 0].tolist():
            n, string = len(strings[row]), tuple(strings[row])
            own_actions, own_rewards = tuple(actions[row][:n]), tuple(rewards[row][: n + 1])
            entry = Entry(string, own_actions, own_rewards, stored[row])
            self.buffer.add(conditions[places[row]].key, entry)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks. Must be called on every rank."""
        return {
            "buffers": all_gather(self.buffer.state_dict()),
            "m_steps": self.m_steps,
            "drawn": sorted(set().union(*all_gather(self._drawn))),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore this rank's buffer, or for another number of ranks, the strings of its conditions."""
        buffers = state["buffers"]
        self.buffer = self._empty_buffer()
        for saved in [buffers[rank()]] if len(buffers) == world() else buffers:
            part = self._empty_buffer()
            part.load_state_dict(saved)
            self.buffer.merge(part)
        self.m_steps = state["m_steps"]
        self._drawn = set(state["drawn"]) & self.conditions.keys()
        for key in set(self.buffer.keys()) - self.conditions.keys():
            if key not in self._all and is_rank_zero():
                logger.warning(
                    "replay buffer: condition %r is not in this run's data; dropped", key
                )
            self.buffer.drop(key)


def _trajectories(rows: Sequence[tuple[Entry, int]], device: torch.device) -> Trajectories:
    """Build trajectories from buffer entries, each with the index of its condition."""
    entries, places = zip(*rows, strict=True)
    tokens, actions = [e.tokens for e in entries], [e.is_action for e in entries]
    return Trajectories.from_rows(tokens, actions, places, device)
