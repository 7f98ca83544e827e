"""φ of every state, and grouping of states, as pure functions of tensors.

For every state, φ_i = log R(z_≤i ⊤)/T − Σ_{k≤i} log q(z_k|z_<k) − log q(⊤|z_≤i). The policy is exact
if and only if φ is one constant per condition, and then that constant is log Z.

Letters of shapes: G groups, M members of the largest group; others as in ``conditions``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfn_runner.data.trajectories import PolicyScores


def phi(scores: PolicyScores, log_reward_BS: Tensor, temperature: float) -> Tensor:
    """Return φ of every state in nats; 0 where the string cannot end.

    Args:
        log_reward_BS: untempered log-rewards in nats.
        temperature: reward temperature T, which is applied only here.
    """
    log_pf_prefix_BS = pad(scores.log_pf_BT.cumsum(dim=1), (1, 0))
    tempered_BS = log_reward_BS.masked_fill(~scores.terminable_BS, 0.0) / temperature
    phi_BS = tempered_BS - log_pf_prefix_BS - scores.log_pf_stop_BS
    return phi_BS.masked_fill(~scores.terminable_BS, 0.0)


@dataclass(frozen=True)
class Members:
    """φ of the states of each group, padded.

    Attributes:
        phi_GM: nats.
        valid_GM: ``False`` at padding.
        row_GM: index of the trajectory that the state belongs to.
        rank_GM: index of the state among the trajectory's terminable states, from 0.
        is_terminal_GM: whether the trajectory ended at the state.
    """

    phi_GM: Tensor
    valid_GM: Tensor
    row_GM: Tensor
    rank_GM: Tensor
    is_terminal_GM: Tensor


def group_states(
    phi_BS: Tensor, terminable_BS: Tensor, length_B: Tensor, condition_B: Tensor, by: str
) -> Members:
    """Group the terminable states by trajectory (``by="trajectory"``) or condition.

    A condition's trajectories need not be adjacent. Trajectories without a terminable state
    are dropped.
    """
    rows, states = phi_BS.shape
    row_BS = torch.arange(rows, device=phi_BS.device)[:, None].expand(rows, states)
    rank_BS = terminable_BS.long().cumsum(dim=1) - 1
    terminal_BS = terminal_states(terminable_BS, length_B)
    label_B = condition_B if by == "condition" else row_BS[:, 0]
    group_B = label_B.unique(return_inverse=True)[1]
    keep_BS = terminable_BS.flatten()
    group_N = group_B[:, None].expand(rows, states).flatten()[keep_BS]
    order_N = group_N.argsort(stable=True)
    group_N = group_N[order_N]
    counts_G = torch.bincount(group_N, minlength=int(group_B.max()) + 1)
    starts_G = counts_G.cumsum(0) - counts_G
    slot_N = torch.arange(len(group_N), device=phi_BS.device) - starts_G[group_N]
    # At least one slot, even if no string may end anywhere.
    shape = (len(counts_G), int(counts_G.max().clamp(min=1)))

    def padded(values_BS: Tensor) -> Tensor:
        values_N = values_BS.flatten()[keep_BS][order_N]
        return values_N.new_zeros(shape).index_put((group_N, slot_N), values_N)

    alive_G = counts_G > 0
    return Members(
        padded(phi_BS)[alive_G],
        padded(torch.ones_like(terminable_BS))[alive_G],
        padded(row_BS.contiguous())[alive_G],
        padded(rank_BS)[alive_G],
        padded(terminal_BS)[alive_G],
    )


def terminal_states(terminable_BS: Tensor, length_B: Tensor) -> Tensor:
    """Return a mask of the state at which each string ended, if it may end there. Shape (B, S)."""
    state_S = torch.arange(terminable_BS.shape[1], device=terminable_BS.device)
    return terminable_BS & (state_S == length_B[:, None])
