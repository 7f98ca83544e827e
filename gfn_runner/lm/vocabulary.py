"""The rule for strings: which tokens may be written, when a string may end and when it must.

Sampler, policy and reward all use :class:`StringRule`, so that they can never differ:

- a token outside the allowed vocabulary has probability 0 and the rest is renormalized;
- below ``min_len`` actions the terminator has probability 0;
- at ``max_len`` actions the string ends with probability 1 (log q⊤ = 0);
- while a tool's tokens are still to come, the string cannot end, and those tokens are not actions;
- a given string that continues after a terminator cannot end at any later state.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfn_runner.data.trajectories import Trajectories


@dataclass(frozen=True)
class StringRule:
    """Rule for the strings that a policy may write.

    Attributes:
        terminator: token id of the terminator ⊤.
        min_len, max_len: bounds on the number of actions; a tool's tokens do not count.
        allowed_V: mask of allowed tokens (see :func:`allowed_mask`); ``None`` allows all.
    """

    terminator: int
    min_len: int
    max_len: int
    allowed_V: Tensor | None = None
    _closed: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def n_actions_BS(self, trajectories: Trajectories) -> Tensor:
        """Return the number of actions in each prefix."""
        return pad(trajectories.is_action_BT.long().cumsum(dim=1), (1, 0))

    def awaits_tool_BS(self, trajectories: Trajectories) -> Tensor:
        """Return the states whose next token is a tool's."""
        return pad(trajectories.token_mask_BT & ~trajectories.is_action_BT, (0, 1))

    def went_on_BS(self, trajectories: Trajectories) -> Tensor:
        """Return the states after a written terminator, which no string of the policy reaches."""
        ended_BT = (trajectories.token_BT == self.terminator) & trajectories.is_action_BT
        return pad(ended_BT.long().cumsum(dim=1), (1, 0)) > 0

    def terminable_BS(self, trajectories: Trajectories) -> Tensor:
        """Return the states at which the string may end."""
        return (
            trajectories.state_mask_BS
            & (self.n_actions_BS(trajectories) >= self.min_len)
            & ~self.awaits_tool_BS(trajectories)
            & ~self.went_on_BS(trajectories)
        )

    def forced_BS(self, trajectories: Trajectories) -> Tensor:
        """Return the states at which the string must end."""
        return self.terminable_BS(trajectories) & (self.n_actions_BS(trajectories) >= self.max_len)

    def may_stop(self, n_actions: Tensor) -> Tensor | None:
        """Return whether the terminator is allowed after ``n_actions`` actions; ``None`` if always."""
        return n_actions >= self.min_len if self.min_len > 0 else None

    def masked(self, logits_NV: Tensor, may_stop_N: Tensor | None) -> Tensor:
        """Return logits in fp32 with −inf at forbidden tokens; no copy if none is forbidden.

        Args:
            logits_NV: logits of any dtype at N positions.
            may_stop_N: whether the terminator is allowed at each position; ``None`` for everywhere.
        """
        logits_NV = logits_NV.float()
        closed_V = self._closed_on(logits_NV.device)
        if closed_V is not None:
            logits_NV = logits_NV.masked_fill(closed_V, float("-inf"))
        if may_stop_N is not None:
            stop_N = logits_NV[:, self.terminator].masked_fill(~may_stop_N, float("-inf"))
            logits_NV = logits_NV.select_scatter(stop_N, dim=1, index=self.terminator)
        return logits_NV

    def _closed_on(self, device: torch.device) -> Tensor | None:
        """Return the mask of forbidden tokens; it is copied to a device once, since every token needs it."""
        if self.allowed_V is None:
            return None
        if device not in self._closed:
            # The first call may come from evaluation: training cannot use inference-mode tensors.
            with torch.inference_mode(False):
                self._closed[device] = ~self.allowed_V.to(device)
        return self._closed[device]

    def log_probs(self, logits_NV: Tensor, may_stop_N: Tensor | None = None) -> Tensor:
        """Return normalized next-token log-probabilities in nats, fp32. Shape (N, V)."""
        return self.masked(logits_NV, may_stop_N).log_softmax(dim=-1)


def allowed_mask(vocab_size: int, forbidden: list[int], terminator: int) -> Tensor:
    """Return a boolean mask over the vocabulary: all but ``forbidden``, the terminator always included."""
    allowed_V = torch.ones(vocab_size, dtype=torch.bool)
    allowed_V[forbidden] = False
    allowed_V[terminator] = True
    return allowed_V
