"""GRPO (arXiv:2402.03300): training of the adapter to maximize log R, without a value head."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gfn_runner.algorithms.policy_gradient import PolicyGradient, Rollout, clipped_gain


class GRPO(PolicyGradient):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300), without a value head.

    A string's advantage is its reward minus the mean reward of its condition's strings, divided by their
    standard deviation. The KL divergence to the base model is part of the loss, estimated per token by
    e^d − d − 1 with d = log p − log q.
    """

    label: ClassVar[str] = "GRPO"
    needs_pairs_between = True

    def __init__(self, *, kl_weight: Annotated[float, Field(ge=0)] = 0.04, **options: Any) -> None:
        super().__init__(kl_weight=kl_weight, **options)

    def set_advantages(self, rollout: Rollout, value_BS: Tensor | None) -> None:
        advantage_B = group_advantages(rollout.reward_B, rollout.trajectories.condition_B)
        rollout.advantage_BS = advantage_B[:, None].expand_as(rollout.old_BS)

    def loss(self, now_BS: Tensor, value_BS: Tensor | None, rollout: Rollout) -> Tensor:
        chosen_BS = rollout.chosen_BS
        gain_BS = clipped_gain(now_BS, rollout.old_BS, rollout.advantage_BS, self.clip)
        difference_BS = rollout.base_BS - now_BS
        kl_BS = difference_BS.exp() - difference_BS - 1
        objective_BS = (gain_BS - self.kl_weight * kl_BS) * chosen_BS
        # Every string has the same weight, whatever its length (arXiv:2402.03300, eq. 3).
        return -(objective_BS.sum(dim=1) / chosen_BS.sum(dim=1).clamp(min=1)).mean()


def group_advantages(reward_B: Tensor, condition_B: Tensor) -> Tensor:
    """Standardize rewards by the mean and standard deviation of their condition. Shape (B,)."""
    advantage_B = torch.zeros_like(reward_B)
    for place in condition_B.unique():
        rows = condition_B == place
        own_N = reward_B[rows]
        deviation = own_N.std() if len(own_N) > 1 else own_N.new_zeros(())
        advantage_B[rows] = (own_N - own_N.mean()) / (deviation + 1e-4)
    return advantage_B
