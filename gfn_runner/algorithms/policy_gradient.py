"""PPO and GRPO: the adapter maximises log R, to be compared with sampling in proportion to R.

A rollout (strings of the policy at temperature 1, their log-rewards, their log-probabilities under the
policy and under the base model) is drawn once and used for ``epochs`` optimizer steps. Small on purpose:
the maintained trainers bring loops of their own, which would take data, evaluation and folders with them.

Letters of shapes: as in ``types``. State ``i`` < n of a string of n tokens chooses token i + 1, state n
chooses to stop, unless a tool writes next or the string has to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gfn_runner.algorithms.sft import step_output
from gfn_runner.baselines.methods import GRPO, PPO, PolicyGradient
from gfn_runner.data.conditions import Condition
from gfn_runner.data.trajectories import Batch, PolicyScores, Trajectories
from gfn_runner.distributed.ranks import gathered, rank, world
from gfn_runner.lm.log_probs import string_log_probs
from gfn_runner.lm.scoring import score_policy, trunk_logits
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.module import GFlowNetModule
from gfn_runner.rewards.reward import terminal_log_reward


@dataclass
class Rollout:
    """Strings and all that is known of them before the first update.

    Attributes:
        conditions, trajectories: what was sampled.
        log_reward_BS: untempered log R at each string's end, −inf elsewhere; nats.
        chosen_BS: states at which the policy chose something.
        old_BS, base_BS: log-probability of what was chosen under the policy of then and under the base
            model, nats; 0 at the other states.
        reward_B: of each string, as the objective has it.
        advantage_BS: of what was chosen at each state.
        return_BS: what the value head is to tell; ``None`` without one.
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
        """Plain containers and tensors only, so that a checkpoint loads with ``weights_only=True``."""
        numbers = {name: getattr(self, name) for name in self.__dataclass_fields__}
        numbers |= {
            "conditions": [condition.key for condition in self.conditions],
            "trajectories": vars(self.trajectories),
        }
        return _moved(numbers, torch.device("cpu"))

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], conditions: Mapping[str, Condition], device: torch.device
    ) -> Rollout:
        """What :meth:`state_dict` was given by; ``conditions`` by their keys."""
        numbers = _moved(state, device)
        numbers["conditions"] = [conditions[key] for key in state["conditions"]]
        numbers["trajectories"] = Trajectories(**numbers["trajectories"])
        return cls(**numbers)


def _moved(tree: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Copies of all tensors on a device; the rest as it is."""
    return {
        name: _moved(value, device)
        if isinstance(value, Mapping)
        else value.to(device, copy=True)
        if isinstance(value, Tensor)
        else value
        for name, value in tree.items()
    }


class PolicyGradientModule(GFlowNetModule):
    """Rollouts, and updates on them; subclasses say what an advantage is.

    Attributes:
        baseline: its settings.
        rollouts: in use, one for each batch of an optimizer step; none before the first. A checkpoint
            holds them: between two updates on one rollout they are part of the run's state.
    """

    def __init__(self, *args: Any, baseline: PolicyGradient, **options: Any):
        super().__init__(*args, **options)
        self.baseline: Any = baseline
        self.rollouts: dict[int, Rollout] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        own = {slot: rollout.state_dict() for slot, rollout in self.rollouts.items()}
        checkpoint["rollouts"] = gathered(own)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        by_rank = checkpoint.get("rollouts", [])
        if len(by_rank) != world():
            return  # of another number of processes, whose strings are shared out anew
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning's own name
        conditions = {condition.key: condition for condition in data.data.train}
        self.rollouts = {
            slot: Rollout.from_state(state, conditions, self.lm.device)
            for slot, state in by_rank[rank()].items()
            if conditions.keys() >= set(state["conditions"])
        }

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        # Batches are counted over all ranks.
        update, slot = divmod(batch.index // world(), self.trainer.accumulate_grad_batches)
        fresh = slot not in self.rollouts or update % self.baseline.epochs == 0
        if fresh:
            self.rollouts[slot] = self.roll_out(batch)
        rollout = self.rollouts[slot]
        prompts = [self.lm.encode_prompt(c.prompt) for c in rollout.conditions]
        with self.phases("policy"):
            scores, value_BS = self.scored(prompts, rollout.trajectories)
        with self.phases("objective"):
            now_BS, _ = chosen_log_probs(scores, rollout.trajectories, self.rule)
            loss = self.loss(now_BS, value_BS, rollout)
        output = step_output(
            rollout.conditions,
            rollout.trajectories,
            rollout.log_reward_BS,
            scores,
            self.reward_temperature,
            from_replay=not fresh,
            exploration_temperature=1.0 if fresh else float("nan"),
        )
        self.last_output = output
        return {
            "loss": loss,
            "output": output,
            "measures": self.measures(now_BS, value_BS, rollout),
        }

    @torch.no_grad()
    def measures(
        self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout
    ) -> dict[str, float]:
        """What an update is watched by; see :class:`~gfn_runner.callbacks.training_log.TrainingLog`."""
        ratio_BS = (now_BS - rollout.old_BS).exp()
        clipped_BS = (ratio_BS - 1).abs() > self.baseline.clip
        strings = len(rollout.reward_B)
        return {
            "kl_base": float((now_BS - rollout.base_BS).sum() / strings),
            "clipped": float(clipped_BS[rollout.chosen_BS].float().mean()),
        }

    @torch.no_grad()
    def roll_out(self, batch: Batch) -> Rollout:
        """Strings of the policy for a batch's conditions, with rewards and advantages."""
        prompts = [self.lm.encode_prompt(condition.prompt) for condition in batch.conditions]
        with self.lm.in_step():
            with self.phases("sample"):
                trajectories = self.explore(prompts, batch.index, 1.0)
            with self.phases("reward"):
                log_reward_BS = terminal_log_reward(
                    self.lm, batch.conditions, trajectories, self.rule, self.task.constraints()
                )
                with self.lm.base():
                    base = score_policy(self.lm, prompts, trajectories, self.rule)
            scores, value_BS = self.scored(prompts, trajectories)
        old_BS, chosen_BS = chosen_log_probs(scores, trajectories, self.rule)
        base_BS, _ = chosen_log_probs(base, trajectories, self.rule)
        log_reward_B = log_reward_BS.gather(1, trajectories.length_B[:, None])[:, 0]
        options = self.baseline
        reward_B = options.reward_scale * log_reward_B.clamp(min=options.reward_floor)
        rollout = Rollout(
            batch.conditions,
            trajectories,
            log_reward_BS,
            chosen_BS,
            old_BS,
            base_BS,
            reward_B,
            torch.zeros_like(old_BS),
        )
        self.judge(rollout, value_BS)
        return rollout

    def scored(
        self, prompts: list[tuple[int, ...]], trajectories: Trajectories
    ) -> tuple[PolicyScores, Tensor | None]:
        """The policy's scores, and the value of every state where there is a value head."""
        return score_policy(self.lm, prompts, trajectories, self.rule), None

    def judge(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        """Put advantages (and returns) into a rollout."""
        raise NotImplementedError

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        """What one update lowers."""
        raise NotImplementedError


class PPOModule(PolicyGradientModule):
    """See :class:`PPO`; the value head is a linear map of what the output layer reads."""

    def __init__(self, *args: Any, baseline: PPO, **options: Any):
        super().__init__(*args, baseline=baseline, **options)
        width = self.lm.model.get_output_embeddings().in_features
        self.value = nn.Linear(width, 1, device=self.lm.device, dtype=torch.float32)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = {"params": list(self.value.parameters()), "lr": self.baseline.value_lr}
        return [*super().parameter_groups(), {**head, "weight_decay": 0.0}]

    def scored(
        self, prompts: list[tuple[int, ...]], trajectories: Trajectories
    ) -> tuple[PolicyScores, Tensor | None]:
        with self.lm.final_states() as read:
            prompt = self.lm.prefill(prompts).select(trajectories.condition_B)
            logits_BSV = trunk_logits(self.lm, prompt, trajectories.token_BT, trajectories.length_B)
        first_B1H = read[0][:, -1:][trajectories.condition_B]
        state_BSH = torch.cat([first_B1H, *read[1:]], dim=1).float()
        log_pf_BT, log_pf_stop_BS = string_log_probs(logits_BSV, trajectories, self.rule)
        log_pf_stop_BS = log_pf_stop_BS.masked_fill(self.rule.forced_BS(trajectories), 0.0)
        scores = PolicyScores(log_pf_BT, log_pf_stop_BS, self.rule.terminable_BS(trajectories))
        return scores, self.value(state_BSH)[..., 0]

    def judge(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        assert value_BS is not None
        reward_BS = token_rewards(rollout, self.baseline.kl_weight)
        advantage_BS = gae(
            reward_BS, value_BS, rollout.trajectories.length_B, self.baseline.gae_lambda
        )
        rollout.return_BS = advantage_BS + value_BS
        rollout.advantage_BS = whitened(advantage_BS, rollout.chosen_BS)

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        assert value_BS is not None
        chosen_BS = rollout.chosen_BS
        gain_BS = clipped_gain(now_BS, rollout.old_BS, rollout.advantage_BS, self.baseline.clip)
        gain = (gain_BS * chosen_BS).sum() / chosen_BS.sum().clamp(min=1)
        return -gain + self.baseline.value_weight * value_loss(value_BS, rollout)

    @torch.no_grad()
    def measures(
        self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout
    ) -> dict[str, float]:
        assert value_BS is not None
        own = super().measures(now_BS, value_BS, rollout)
        return {**own, "value_loss": float(value_loss(value_BS, rollout))}


class GRPOModule(PolicyGradientModule):
    """See :class:`GRPO`."""

    def __init__(self, *args: Any, baseline: GRPO, **options: Any):
        super().__init__(*args, baseline=baseline, **options)

    def judge(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        advantage_B = group_advantages(rollout.reward_B, rollout.trajectories.condition_B)
        rollout.advantage_BS = advantage_B[:, None].expand_as(rollout.old_BS)

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        chosen_BS = rollout.chosen_BS
        gain_BS = clipped_gain(now_BS, rollout.old_BS, rollout.advantage_BS, self.baseline.clip)
        difference_BS = rollout.base_BS - now_BS
        kl_BS = difference_BS.exp() - difference_BS - 1
        objective_BS = (gain_BS - self.baseline.kl_weight * kl_BS) * chosen_BS
        # Every string counts the same, whatever its length (arXiv:2402.03300, eq. 3).
        return -(objective_BS.sum(dim=1) / chosen_BS.sum(dim=1).clamp(min=1)).mean()


# -- what is computed ---------------------------------------------------------------------------


def chosen_log_probs(
    scores: PolicyScores, trajectories: Trajectories, rule: StringRule
) -> tuple[Tensor, Tensor]:
    """log q of what was chosen at each state, and at which states something was. Shapes (B, S), nats."""
    ends_B1 = trajectories.length_B[:, None]
    is_end_BS = torch.zeros_like(scores.terminable_BS).scatter(1, ends_B1, True)
    token_BS = nn.functional.pad(scores.log_pf_BT, (0, 1))
    stop_BS = scores.log_pf_stop_BS
    chosen_BS = nn.functional.pad(trajectories.is_action_BT, (0, 1))
    chosen_BS = chosen_BS | (is_end_BS & ~rule.forced_BS(trajectories))
    return torch.where(is_end_BS, stop_BS, token_BS).masked_fill(~chosen_BS, 0.0), chosen_BS


def token_rewards(rollout: Rollout, kl_weight: float) -> Tensor:
    """−kl_weight (log q − log p) for every choice, and the string's reward for its last state. (B, S)."""
    reward_BS = -kl_weight * (rollout.old_BS - rollout.base_BS)
    ends_B1 = rollout.trajectories.length_B[:, None]
    return reward_BS.scatter_add(1, ends_B1, rollout.reward_B[:, None])


def gae(reward_BS: Tensor, value_BS: Tensor, length_B: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates with discount 1; 0 behind a string's last state. Shape (B, S)."""
    states = reward_BS.shape[1]
    inside_BS = torch.arange(states, device=reward_BS.device) <= length_B[:, None]
    value_BS = value_BS * inside_BS
    next_BS = nn.functional.pad(value_BS[:, 1:], (0, 1))
    delta_BS = (reward_BS + next_BS - value_BS) * inside_BS
    advantage_B, columns = torch.zeros_like(reward_BS[:, 0]), []
    for state in reversed(range(states)):
        advantage_B = delta_BS[:, state] + lam * advantage_B
        columns.append(advantage_B)
    return torch.stack(columns[::-1], dim=1) * inside_BS


def value_loss(value_BS: Tensor, rollout: Rollout) -> Tensor:
    """½ (V − return)², averaged over what was chosen; squared units of reward."""
    assert rollout.return_BS is not None
    error_BS = 0.5 * (value_BS - rollout.return_BS).square()
    return (error_BS * rollout.chosen_BS).sum() / rollout.chosen_BS.sum().clamp(min=1)


def whitened(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1 over the mask."""
    own_N = values_BS[mask_BS]
    if own_N.numel() < 2:
        return values_BS
    return (values_BS - own_N.mean()) / (own_N.std() + 1e-8)


def group_advantages(reward_B: Tensor, condition_B: Tensor) -> Tensor:
    """Rewards against the mean of their condition's, in its standard deviations. Shape (B,)."""
    advantage_B = torch.zeros_like(reward_B)
    for place in condition_B.unique():
        rows = condition_B == place
        own_N = reward_B[rows]
        deviation = own_N.std() if len(own_N) > 1 else own_N.new_zeros(())
        advantage_B[rows] = (own_N - own_N.mean()) / (deviation + 1e-4)
    return advantage_B


def clipped_gain(now_BS: Tensor, old_BS: Tensor, advantage_BS: Tensor, clip: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 ± clip) A) with ρ = q_now / q_old (arXiv:1707.06347, eq. 7)."""
    ratio_BS = (now_BS - old_BS).exp()
    return torch.minimum(ratio_BS * advantage_BS, ratio_BS.clamp(1 - clip, 1 + clip) * advantage_BS)
