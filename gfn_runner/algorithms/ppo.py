"""PPO with a value head (arXiv:1707.06347): training of the adapter to maximize log R."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from gfn_runner.algorithms.policy_gradient import PolicyGradient, Rollout, clipped_gain

if TYPE_CHECKING:
    from gfn_runner.tasks.base import GFlowNetModule


class PPO(PolicyGradient):
    """Proximal Policy Optimization (Schulman et al. 2017, arXiv:1707.06347) with a value head.

    The KL penalty is part of the reward of every token (Ziegler et al. 2019, arXiv:1909.08593);
    advantages are computed by generalized advantage estimation (GAE; Schulman et al. 2015,
    arXiv:1506.02438) and whitened over the rollout; the discount is 1.

    Because of whitening, the reward's scale (at a fixed ratio of ``kl_weight`` to it) affects the value
    loss, and how soon the head is accurate, but not the policy's own gradient. At scale 1 the value loss
    is in the hundreds where log R differs by tens of nats between strings, and its gradient in the
    adapter dominates the policy's: hence the default of 0.1.

    Args:
        gae_lambda: λ of GAE.
        value_weight: weight of the value loss ½ (V − return)².
        value_lr: learning rate of the value head.

    Attributes:
        value: the value head, a linear map of the output layer's inputs.
    """

    label: ClassVar[str] = "PPO"

    def __init__(
        self,
        *,
        kl_weight: Annotated[float, Field(ge=0)] = 0.005,
        reward_scale: Annotated[float, Field(gt=0)] = 0.1,
        gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95,
        value_weight: Annotated[float, Field(ge=0)] = 0.1,
        value_lr: Annotated[float, Field(gt=0)] = 1e-3,
        **options: Any,
    ) -> None:
        super().__init__(kl_weight=kl_weight, reward_scale=reward_scale, **options)
        self.gae_lambda, self.value_weight, self.value_lr = gae_lambda, value_weight, value_lr

    def setup(self, module: GFlowNetModule) -> None:
        lm = module.lm
        width = lm.model.get_output_embeddings().in_features
        self.value = nn.Linear(width, 1, device=lm.device, dtype=torch.float32)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def parameter_groups(self) -> list[dict[str, Any]]:
        assert self.value is not None  # created by setup
        parameters = list(self.value.parameters())
        return [{"params": parameters, "lr": self.value_lr, "weight_decay": 0.0}]

    def set_advantages(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        assert value_BS is not None
        reward_BS = token_rewards(rollout, self.kl_weight)
        advantage_BS = gae(reward_BS, value_BS, rollout.trajectories.length_B, self.gae_lambda)
        rollout.return_BS = advantage_BS + value_BS
        rollout.advantage_BS = whitened(advantage_BS, rollout.chosen_BS)

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        assert value_BS is not None
        chosen_BS = rollout.chosen_BS
        gain_BS = clipped_gain(now_BS, rollout.old_BS, rollout.advantage_BS, self.clip)
        gain = (gain_BS * chosen_BS).sum() / chosen_BS.sum().clamp(min=1)
        return -gain + self.value_weight * value_loss(value_BS, rollout)

    @torch.no_grad()
    def measures(
        self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout
    ) -> dict[str, float]:
        assert value_BS is not None
        own = super().measures(now_BS, value_BS, rollout)
        return {**own, "value_loss": float(value_loss(value_BS, rollout))}


def token_rewards(rollout: Rollout, kl_weight: float) -> Tensor:
    """Return −kl_weight (log q − log p) per choice, plus the string's reward at its last state. (B, S)."""
    reward_BS = -kl_weight * (rollout.old_BS - rollout.base_BS)
    ends_B1 = rollout.trajectories.length_B[:, None]
    return reward_BS.scatter_add(1, ends_B1, rollout.reward_B[:, None])


def gae(reward_BS: Tensor, value_BS: Tensor, length_B: Tensor, lam: float) -> Tensor:
    """Return advantages by GAE with discount 1; 0 after a string's last state. Shape (B, S)."""
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
    """Return ½ (V − return)², averaged over the policy's choices; in squared units of reward."""
    assert rollout.return_BS is not None
    error_BS = 0.5 * (value_BS - rollout.return_BS).square()
    return (error_BS * rollout.chosen_BS).sum() / rollout.chosen_BS.sum().clamp(min=1)


def whitened(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Shift and scale values to mean 0 and standard deviation 1 over the mask."""
    own_N = values_BS[mask_BS]
    if own_N.numel() < 2:
        return values_BS
    return (values_BS - own_N.mean()) / (own_N.std() + 1e-8)
