"""Common parts of PPO and GRPO: rollouts, and updates on them that maximize log R.

A rollout (strings of the policy at temperature 1, their log-rewards, their log-probabilities under the
policy and under the base model) is drawn once and used for ``epochs`` optimizer steps. This is small on
purpose: maintained trainers bring their own loops, which would also take over data, evaluation and folders.

Letters of shapes: as in ``conditions``. At state ``i`` < n of a string of n tokens the policy chooses token
i + 1, at state n it chooses to stop, unless a tool writes next or the string must end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.algorithms.sft import step_output
from gfn_runner.data.conditions import Condition
from gfn_runner.data.trajectories import Batch, PolicyScores, Trajectories
from gfn_runner.distributed.ranks import all_gather, rank, world
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule

if TYPE_CHECKING:
    from gfn_runner.tasks.base import GFlowNetModule


@dataclass
class Rollout:
    """Strings and all quantities computed before the first update on them.

    Attributes:
        conditions, trajectories: the sampled strings and their conditions.
        log_reward_BS: untempered log R at each string's end, −inf elsewhere; nats.
        chosen_BS: states at which the policy chose a token or to stop.
        old_BS, base_BS: log-probability of the choices under the policy at rollout time and under the
            base model, nats; 0 at the other states.
        reward_B: reward of each string, as used in the objective.
        advantage_BS: advantage of the choice at each state.
        return_BS: regression target of the value head; ``None`` without one.
    """

    conditions: list[Condition]
    trajectories: Trajectories
    log_reward_BS: Tensor
    chosen_BS: Tensor
    old_BS: Tensor
    base_BS: Tensor
    reward_B: Tensor
    advantage_BS: Tensor
    return_BS: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, so that a checkpoint loads with ``weights_only=True``."""
        numbers = {name: getattr(self, name) for name in self.__dataclass_fields__}
        numbers |= {
            "conditions": [condition.key for condition in self.conditions],
            "trajectories": vars(self.trajectories),
        }
        return _copied(numbers, torch.device("cpu"))

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], conditions: Mapping[str, Condition], device: torch.device
    ) -> Rollout:
        """Restore a rollout from its :meth:`state_dict`; ``conditions`` maps keys to conditions."""
        numbers = _copied(state, device)
        numbers["conditions"] = [conditions[key] for key in state["conditions"]]
        numbers["trajectories"] = Trajectories(**numbers["trajectories"])
        return cls(**numbers)


def _copied(tree: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copy all tensors to a device; keep the rest as it is."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, copy=True), dict(tree))


class PolicyGradient(Algorithm):
    """Base class for on-policy rollouts with several updates each; subclasses define advantages and loss.

    The reward is ``reward_scale`` · log R of the whole string, untempered; log R, in nats, is clamped to
    at least ``reward_floor``, which strings of reward 0 get.

    Args:
        epochs: optimizer steps on each rollout of ``sampling.n_conditions`` × ``sampling.n_samples``
            strings.
        clip: clipping range: the ratio of new to old probability counts up to 1 ± this.
        kl_weight: weight of the KL divergence to the base model, in reward per nat.
        reward_scale: reward per nat of log R.
        reward_floor: lower bound on log R, nats.

    Attributes:
        rollouts: rollouts in use, one per batch of an optimizer step; empty before the first. Checkpoints
            contain them: between two updates on one rollout they are part of the run's state.
        value: value head on the output layer's inputs; ``None`` without one.
    """

    def __init__(
        self,
        epochs: Annotated[int, Field(ge=1)] = 4,
        clip: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        kl_weight: Annotated[float, Field(ge=0)] = 0.05,
        reward_scale: Annotated[float, Field(gt=0)] = 1.0,
        reward_floor: float = -100.0,
    ) -> None:
        super().__init__()
        self.epochs, self.clip, self.kl_weight = epochs, clip, kl_weight
        self.reward_scale, self.reward_floor = reward_scale, reward_floor
        self.rollouts: dict[int, Rollout] = {}
        self.value: nn.Linear | None = None

    def on_save_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        own = {slot: rollout.state_dict() for slot, rollout in self.rollouts.items()}
        checkpoint["rollouts"] = all_gather(own)

    def on_load_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        by_rank = checkpoint.get("rollouts", [])
        if len(by_rank) != world():
            return  # from another number of processes: strings are distributed anew
        conditions = {condition.key: condition for condition in module.conditions}
        # Either all ranks keep a slot or none does: with FSDP they roll out together.
        unknown = {
            slot
            for states in by_rank
            for slot, state in states.items()
            if not conditions.keys() >= set(state["conditions"])
        }
        self.rollouts = {
            slot: Rollout.from_state(state, conditions, module.lm.device)
            for slot, state in by_rank[rank()].items()
            if slot not in unknown
        }

    def training_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        # Batches are counted over all ranks.
        update, slot = divmod(batch.index // world(), module.trainer.accumulate_grad_batches)
        fresh = slot not in self.rollouts or update % self.epochs == 0
        if fresh:
            self.rollouts[slot] = self.roll_out(module, batch)
        rollout = self.rollouts[slot]
        with module.phases("policy"):
            prompts = module.prompts(rollout.conditions)
            scores = score_policy(module.lm, prompts, rollout.trajectories, module.rule, self.value)
        value_BS = scores.value_BS
        with module.phases("objective"):
            now_BS, _ = chosen_log_probs(scores, rollout.trajectories, module.rule)
            loss = self.loss(now_BS, value_BS, rollout)
        output = step_output(
            rollout.conditions,
            rollout.trajectories,
            rollout.log_reward_BS,
            scores,
            module.reward_temperature,
            from_replay=not fresh,
            exploration_temperature=1.0 if fresh else float("nan"),
        )
        return {
            "loss": loss,
            "output": output,
            "measures": self.measures(now_BS, value_BS, rollout),
        }

    @torch.no_grad()
    def measures(
        self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout
    ) -> dict[str, float]:
        """Return scalars of an update; see :class:`~gfn_runner.callbacks.training_log.TrainingLog`."""
        ratio_BS = (now_BS - rollout.old_BS).exp()
        clipped_BS = (ratio_BS - 1).abs() > self.clip
        strings = len(rollout.reward_B)
        return {
            "kl_base": float((now_BS - rollout.base_BS).sum() / strings),
            "clipped": float(clipped_BS[rollout.chosen_BS].float().mean()),
        }

    @torch.no_grad()
    def roll_out(self, module: GFlowNetModule, batch: Batch) -> Rollout:
        """Sample strings of the policy for a batch's conditions; compute rewards and advantages."""
        prompts = module.prompts(batch.conditions)
        with module.lm.in_step():
            with module.phases("sample"):
                trajectories = module.explore(prompts, batch.index, 1.0)
            with module.phases("reward"):
                log_reward_BS = module.log_reward(batch.conditions, trajectories)
                with module.lm.base():
                    base = score_policy(module.lm, prompts, trajectories, module.rule)
            scores = score_policy(module.lm, prompts, trajectories, module.rule, self.value)
        old_BS, chosen_BS = chosen_log_probs(scores, trajectories, module.rule)
        base_BS, _ = chosen_log_probs(base, trajectories, module.rule)
        log_reward_B = trajectories.at_ends(log_reward_BS)
        rollout = Rollout(
            batch.conditions,
            trajectories,
            log_reward_BS,
            chosen_BS,
            old_BS,
            base_BS,
            self.reward_scale * log_reward_B.clamp(min=self.reward_floor),
            torch.zeros_like(old_BS),
        )
        self.set_advantages(rollout, scores.value_BS)
        return rollout

    def set_advantages(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        """Set the advantages (and returns) of a rollout."""
        raise NotImplementedError

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        """Return the loss of one update."""
        raise NotImplementedError


# -- what is computed ---------------------------------------------------------------------------


def chosen_log_probs(
    scores: PolicyScores, trajectories: Trajectories, rule: StringRule
) -> tuple[Tensor, Tensor]:
    """Return log q (nats) of the choice at each state, and a mask of states with one. Shapes (B, S)."""
    ends_B1 = trajectories.length_B[:, None]
    is_end_BS = torch.zeros_like(scores.terminable_BS).scatter(1, ends_B1, True)
    token_BS = nn.functional.pad(scores.log_pf_BT, (0, 1))
    stop_BS = scores.log_pf_stop_BS
    chosen_BS = nn.functional.pad(trajectories.is_action_BT, (0, 1))
    chosen_BS = chosen_BS | (is_end_BS & ~rule.forced_BS(trajectories))
    return torch.where(is_end_BS, stop_BS, token_BS).masked_fill(~chosen_BS, 0.0), chosen_BS


def clipped_gain(now_BS: Tensor, old_BS: Tensor, advantage_BS: Tensor, clip: float) -> Tensor:
    """Return min(ρ A, clip(ρ, 1 ± clip) A) with ρ = q_now / q_old (arXiv:1707.06347, eq. 7)."""
    ratio_BS = (now_BS - old_BS).exp()
    return torch.minimum(ratio_BS * advantage_BS, ratio_BS.clamp(1 - clip, 1 + clip) * advantage_BS)
