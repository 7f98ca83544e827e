"""Log-probabilities of chosen tokens from logits, computed in fp32 for a few rows at a time.

The plain expression (mask, logsumexp, gather) keeps several fp32 tensors of shape (rows, vocabulary), and
its backward pass allocates more. Here the forward pass keeps none and the backward pass allocates one, in
the logits' own precision: the gradient itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.vocabulary import StringRule


def _numbers_at_once(device: torch.device) -> int:
    """Return the fp32 numbers per piece: 16 MiB on a CPU (to fit caches), 512 MiB on a GPU (few calls)."""
    return 1 << (22 if device.type == "cpu" else 27)


def chosen_log_probs(logits: Tensor, token: Tensor) -> Tensor:
    """Return log softmax(logits)[token] over the last axis, in nats, accumulated in fp32.

    Args:
        logits: logits of any dtype, shape (…, V).
        token: token ids, shape (…).
    """
    flat_NV, token_N = logits.reshape(-1, logits.shape[-1]), token.reshape(-1)
    chosen_N1: Tensor = _Chosen.apply(flat_NV, token_N[:, None].clamp(min=0), None, None)
    return chosen_N1[:, 0].view(token.shape)


def string_log_probs(
    logits_BSV: Tensor, trajectories: Trajectories, rule: StringRule
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each action and of stopping, under the rule for strings.

    Args:
        logits_BSV: next-token logits at each state.

    Returns:
        ``log_p_BT``: nats; 0 where the token is not an action. ``log_p_stop_BS``: nats, from the
        model's logits (not yet 0 for a forced stop); 0 where the string cannot end.
    """
    rows, states, vocabulary = logits_BSV.shape
    terminable_BS = rule.terminable_BS(trajectories)
    next_BS = torch.nn.functional.pad(
        trajectories.token_BT, (0, 1)
    )  # nothing follows the last state
    token_BS2 = torch.stack([next_BS, torch.full_like(next_BS, rule.terminator)], dim=-1)
    may_stop_N = rule.may_stop(rule.n_actions_BS(trajectories).reshape(-1))
    chosen_N2: Tensor = _Chosen.apply(
        logits_BSV.reshape(-1, vocabulary), token_BS2.reshape(-1, 2), may_stop_N, rule
    )
    log_p_BS2 = chosen_N2.view(rows, states, 2)
    log_p_BT = log_p_BS2[:, :-1, 0].masked_fill(~trajectories.is_action_BT, 0.0)
    return log_p_BT, log_p_BS2[..., 1].masked_fill(~terminable_BS, 0.0)


class _Chosen(torch.autograd.Function):
    """Log softmax of masked logits at K tokens of each of N positions, computed piecewise.

    The gradient at logit v is Σ_k g_k (1[v = token k] − softmax_v).
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        token_NK: Tensor,
        may_stop_N: Tensor | None,
        rule: StringRule | None,
    ) -> Tensor:
        norm_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
        chosen_NK = logits_NV.new_empty(token_NK.shape, dtype=torch.float32)
        for some in _pieces(logits_NV):
            masked_MV = _masked(logits_NV, may_stop_N, rule, some)
            norm_N[some] = masked_MV.logsumexp(dim=-1)
            chosen_NK[some] = masked_MV.gather(-1, token_NK[some])
        ctx.save_for_backward(logits_NV, token_NK, norm_N, may_stop_N)
        ctx.rule = rule
        return chosen_NK - norm_N[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor, None, None, None]:
        logits_NV, token_NK, norm_N, may_stop_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for some in _pieces(logits_NV):
            masked_MV = _masked(logits_NV, may_stop_N, ctx.rule, some)
            grad_MK = grad_NK[some]
            grad_MV = (masked_MV - norm_N[some, None]).exp_()
            grad_MV.mul_(-grad_MK.sum(dim=-1, keepdim=True)).scatter_add_(
                -1, token_NK[some], grad_MK
            )
            grad_NV[some] = grad_MV
        return grad_NV, None, None, None


def _pieces(logits_NV: Tensor) -> Iterator[slice]:
    rows, vocabulary = logits_NV.shape
    size = max(1, _numbers_at_once(logits_NV.device) // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _masked(
    logits_NV: Tensor, may_stop_N: Tensor | None, rule: StringRule | None, some: slice
) -> Tensor:
    """Return the logits of some positions in fp32, −inf at tokens that the rule forbids."""
    if rule is None:
        return logits_NV[some].float()
    return rule.masked(logits_NV[some], None if may_stop_N is None else may_stop_N[some])
