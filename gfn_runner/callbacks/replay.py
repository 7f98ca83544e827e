"""Replay: fills the buffer with fresh trajectories and puts draws on batches; knows no loss."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from gfn_runner.data import own_conditions
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample, with_tool
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.module import GFlowNetModule
from gfn_runner.randomness import rng_for, torch_generator_for
from gfn_runner.ranks import gathered, is_first, rank, world
from gfn_runner.replay import Entry, ReplayBuffer, ReplaySettings
from gfn_runner.status_lines import Count
from gfn_runner.tasks.base import DemonstrationPrompt
from gfn_runner.trajectories import Batch, ReplayDraw, StepOutput, Trajectories
from gfn_runner.types import Condition

logger = logging.getLogger(__name__)
_AT_ONCE = 16  # conditions scored together


class ReplayCallback(L.Callback):
    """Owns the buffer.

    On a replay step the batch keeps its conditions as far as they have strings; the others give way
    to conditions drawn from the buffer, so that every step has equally many once the buffer holds that
    many conditions. A condition gives at most ``n_samples`` strings, each once.

    Every rank has the buffer of its own conditions. A checkpoint holds all of them together: a run
    may go on with another number of ranks.

    Attributes:
        buffer: strings by condition key.
        conditions: of this rank, by key.
    """

    def __init__(
        self, options: ReplaySettings, conditions: Sequence[Condition], n_samples: int, seed: int
    ):
        self.options, self.n_samples, self.seed = options, n_samples, seed
        self.buffer = ReplayBuffer(options)
        self._all: dict[str, Condition] = {c.key: c for c in conditions}
        self.conditions = {c.key: c for c in own_conditions(conditions)}
        # M-steps of the model whose log-rewards are stored.
        self.m_steps = 0

    @property
    def active(self) -> bool:
        return self.options.probability > 0

    def on_fit_start(self, trainer: L.Trainer, module: GFlowNetModule) -> None:
        with module.lm.in_step():
            self._fill(module)
        self.m_steps = module.lm.m_steps

    def _fill(self, module: GFlowNetModule) -> None:
        # A resumed run has its buffer back by now.
        if self.active and self.options.seed_demonstrations and not len(self.buffer):
            seeds = [c for c in self._with_samples(module) if c.demonstrations]
            with Count("rewards of demonstrations", len(seeds)) as count:
                for start in range(0, len(seeds), _AT_ONCE):
                    self._seed(module, seeds[start : start + _AT_ONCE])
                    count.advance(len(seeds[start : start + _AT_ONCE]))
        elif self.m_steps != module.lm.m_steps:
            self._rescore(module)

    def _with_samples(self, module: GFlowNetModule) -> list[Condition]:
        """The conditions, with the demonstrations that the base model is to write for them."""
        conditions = list(self.conditions.values())
        asked = [(c, module.task.demonstration_prompt(c)) for c in conditions]
        texts: dict[str, tuple[str, ...]] = {}
        with Count("demonstrations by the base model", len(asked)) as count:
            for start in range(0, len(asked), _AT_ONCE):
                own = asked[start : start + _AT_ONCE]
                part = {c.key: prompt for c, prompt in own if prompt}
                generator = torch_generator_for(module.lm.device, "write", self.seed, start)
                texts |= written_demonstrations(module.lm, part, module.rule, generator)
                count.advance(len(own))
        return [
            replace(c, demonstrations=(*c.demonstrations, *texts.get(c.key, ())))
            for c in conditions
        ]

    @torch.no_grad()
    def _rescore(self, module: GFlowNetModule) -> None:
        """Give every string its log-reward under the answer model of now.

        The strings themselves stay worth having: most of what was good is good still, log q is computed
        anew whenever they are used, and what was found once need not be found again.
        """
        old, self.buffer = self.buffer, ReplayBuffer(self.options)
        keys = old.keys()
        for start in range(0, len(keys), _AT_ONCE):
            conditions = [self.conditions[key] for key in keys[start : start + _AT_ONCE]]
            rows = [(e, at) for at, c in enumerate(conditions) for e in old.entries(c.key)]
            trajectories = Trajectories.from_rows(
                [entry.tokens for entry, _ in rows],
                [entry.is_action for entry, _ in rows],
                [at for _, at in rows],
                module.lm.device,
            )
            stored = [entry.step for entry, _ in rows]
            rewards_BS = module.log_reward(conditions, trajectories)
            read_BS = _read(module, trajectories)
            self._store(conditions, trajectories, rewards_BS, read_BS, stored)

    @torch.no_grad()
    def _seed(self, module: GFlowNetModule, conditions: list[Condition]) -> None:
        trajectories, n_unfit = fitting_demonstrations(module, conditions)
        if n_unfit:
            logger.warning(
                "%d of %d demonstrations are no strings of the policy's (task.min_len = %d, "
                "task.max_len = %d, no task.terminator within) and do not enter the replay buffer",
                n_unfit,
                n_unfit + len(trajectories),
                module.rule.min_len,
                module.rule.max_len,
            )
        if len(trajectories):
            rewards_BS = module.log_reward(conditions, trajectories)
            read_BS, stored = _read(module, trajectories), [0] * len(trajectories)
            self._store(conditions, trajectories, rewards_BS, read_BS, stored)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: GFlowNetModule, batch: Batch, batch_idx: int
    ) -> None:
        # All ranks draw or all replay: one that samples takes longer, and the others would wait for it.
        turn = rng_for("replay", self.seed, batch.index // world())
        if not self.active or turn.random() >= self.options.probability:
            return
        rng = turn if rank() == 0 else rng_for("replay", self.seed, batch.index, "rank", rank())
        # Where only different trajectories are compared, a single string gives no loss.
        known = self.buffer.keys(at_least=2 if module.objective.needs_pairs_between else 1)
        if not known:
            return
        batch.conditions = self._with_strings(batch.conditions, set(known), rng)
        tokens, actions, rewards, places = [], [], [], []
        for place, condition in enumerate(batch.conditions):
            for entry in self.buffer.sample(condition.key, self.n_samples, rng):
                tokens.append(entry.tokens)
                actions.append(entry.is_action)
                rewards.append(entry.log_reward)
                places.append(place)
        trajectories = Trajectories.from_rows(tokens, actions, places, module.lm.device)
        batch.replay = ReplayDraw(trajectories, _padded(rewards, module.lm.device))

    def _with_strings(
        self, conditions: list[Condition], known: set[str], rng: random.Random
    ) -> list[Condition]:
        kept = [condition for condition in conditions if condition.key in known]
        others = sorted(known - {condition.key for condition in kept})
        wanted = min(len(conditions) - len(kept), len(others))
        return kept + [self.conditions[key] for key in rng.sample(others, wanted)]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: GFlowNetModule,
        outputs: dict[str, Any],
        batch: Batch,
        batch_idx: int,
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

    def _store(
        self,
        conditions: Sequence[Condition],
        trajectories: Trajectories,
        log_reward_BS: torch.Tensor,
        read_BS: torch.Tensor,
        stored: Sequence[int],
    ) -> None:
        """Offer every row; ``stored`` are the optimizer steps from which its age is counted.

        A row is left out if a log-reward that the objective reads (``read_BS``) is not finite: a step
        that drew it would be skipped.
        """
        sound_B = (log_reward_BS.isfinite() | ~read_BS).all(dim=1)
        columns = zip(
            trajectories.token_BT.tolist(),
            trajectories.is_action_BT.tolist(),
            log_reward_BS.tolist(),
            trajectories.length_B.tolist(),
            trajectories.condition_B.tolist(),
            stored,
            sound_B.tolist(),
            strict=True,
        )
        for tokens, actions, rewards, length, place, step, sound in columns:
            if not sound:
                continue
            entry = Entry(
                tuple(tokens[:length]), tuple(actions[:length]), tuple(rewards[: length + 1]), step
            )
            self.buffer.add(conditions[place].key, entry)

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks together; every rank has to call it."""
        whole = ReplayBuffer(self.options)
        for state in gathered(self.buffer.state_dict()):
            whole.merge(state)
        return {"buffer": whole.state_dict(), "m_steps": self.m_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what belongs to this rank's conditions."""
        self.buffer.load_state_dict(state["buffer"])
        self.m_steps = state.get("m_steps", 0)
        for key in set(self.buffer.keys()) - self.conditions.keys():
            if key not in self._all and is_first():
                logger.warning(
                    "replay buffer: condition %r is not in this run's data; dropped", key
                )
            self.buffer.drop(key)


@torch.no_grad()
def written_demonstrations(
    lm: LanguageModel,
    asked: Mapping[str, DemonstrationPrompt],
    rule: StringRule,
    generator: torch.Generator,
) -> dict[str, tuple[str, ...]]:
    """Different texts that the bare base model writes, by condition key; in the order of their draw.

    Args:
        lm: its adapters do not take part.
        asked: prompt, number of samples and what is kept of each, by condition key.
        rule: what may be written, and how long.
        generator: of the model's device.
    """
    if not asked:
        return {}
    prompts = [lm.encode_prompt(a.prompt) for a in asked.values()]
    most = max(a.n for a in asked.values())
    with lm.base():
        rows = sample(lm, prompts, most, rule, generator)
    written = {}
    for place, (key, a) in enumerate(asked.items()):
        samples = [lm.decode(rows.ids(place * most + number)) for number in range(a.n)]
        found = [re.match(a.keep, text) for text in samples]
        written[key] = tuple(dict.fromkeys(m.group() for m in found if m and m.group()))
    return written


def fitting_demonstrations(
    module: GFlowNetModule, conditions: Sequence[Condition]
) -> tuple[Trajectories, int]:
    """Demonstrations that the policy could write, a tool's answers put in, and how many it could not.

    The latter are not to be scored: they may be longer than the model's context.
    """
    trajectories, rule = _demonstrations(module, conditions), module.rule
    fits_B = rule.terminable_BS(trajectories).gather(1, trajectories.length_B[:, None])[:, 0]
    fits_B = fits_B & (rule.n_actions_BS(trajectories)[:, -1] <= rule.max_len)
    return trajectories.rows(fits_B.nonzero()[:, 0]), int((~fits_B).sum())


def _demonstrations(module: GFlowNetModule, conditions: Sequence[Condition]) -> Trajectories:
    tool = module.task.tool()
    rows = [
        (*with_tool(module.lm, text, tool), place)
        for place, condition in enumerate(conditions)
        for text in condition.demonstrations
    ]
    tokens, actions, places = zip(*rows, strict=True)
    return Trajectories.from_rows(tokens, actions, places, module.lm.device)


def _read(module: GFlowNetModule, trajectories: Trajectories) -> torch.Tensor:
    """States whose log-reward the objective reads. Shape (B, S)."""
    terminable_BS = module.rule.terminable_BS(trajectories)
    return module.objective.counted_BS(terminable_BS, trajectories.length_B)


def _padded(rewards: Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    """Log-rewards of prefixes, −inf at padding. Shape (B, S)."""
    longest = max(map(len, rewards))
    rows = [[*row, *[float("-inf")] * (longest - len(row))] for row in rewards]
    return torch.tensor(rows, device=device)
