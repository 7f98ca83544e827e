"""One rule for what may be written, when a string may end and when it must.

Sampler, policy and reward all ask :class:`StringRule`, so that they can never differ:

- a token outside the allowed vocabulary has probability 0 and the rest is renormalised;
- below ``min_len`` actions the terminator has probability 0;
- at ``max_len`` actions the string ends with probability 1 (log q⊤ = 0);
- while a tool's tokens are still to come, the string cannot end, and those tokens are no actions;
- a given string that goes on after its terminator is no string: it ends nowhere after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfn_runner.data.trajectories import Trajectories


@dataclass(frozen=True)
class StringRule:
    """The strings that a policy may write.

    Attributes:
        terminator: token id of ⊤.
        min_len, max_len: bounds on the number of actions; a tool's tokens do not count.
        allowed_V: tokens that may be written, the terminator left aside; ``None`` allows all.
    """

    terminator: int
    min_len: int
    max_len: int
    allowed_V: Tensor | None = None
    _closed: dict[torch.device, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def n_actions_BS(self, trajectories: Trajectories) -> Tensor:
        """Number of actions in each prefix."""
        return pad(trajectories.is_action_BT.long().cumsum(dim=1), (1, 0))

    def awaits_tool_BS(self, trajectories: Trajectories) -> Tensor:
        """States whose next token is a tool's."""
        return pad(trajectories.token_mask_BT & ~trajectories.is_action_BT, (0, 1))

    def went_on_BS(self, trajectories: Trajectories) -> Tensor:
        """States after a terminator that was written: no string of the policy's gets there."""
        ended_BT = (trajectories.token_BT == self.terminator) & trajectories.is_action_BT
        return pad(ended_BT.long().cumsum(dim=1), (1, 0)) > 0

    def terminable_BS(self, trajectories: Trajectories) -> Tensor:
        """States at which the string may end."""
        return (
            trajectories.state_mask_BS
            & (self.n_actions_BS(trajectories) >= self.min_len)
            & ~self.awaits_tool_BS(trajectories)
            & ~self.went_on_BS(trajectories)
        )

    def forced_BS(self, trajectories: Trajectories) -> Tensor:
        """States at which the string must end."""
        return self.terminable_BS(trajectories) & (self.n_actions_BS(trajectories) >= self.max_len)

    def may_stop(self, n_actions: Tensor) -> Tensor | None:
        """Whether the terminator is open after so many actions; ``None`` if it always is."""
        return n_actions >= self.min_len if self.min_len > 0 else None

    def masked(self, logits_NV: Tensor, may_stop_N: Tensor | None) -> Tensor:
        """Logits in fp32 with −inf at what may not follow; no copy of them where nothing is closed.

        Args:
            logits_NV: any dtype; N positions.
            may_stop_N: whether the terminator is open at each position; ``None`` for everywhere.
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
        """Tokens that may not be written. Copied to a device once: every token asks for it."""
        if self.allowed_V is None:
            return None
        if device not in self._closed:
            # Evaluation may ask first: what inference mode makes is of no use to a training step.
            with torch.inference_mode(False):
                self._closed[device] = ~self.allowed_V.to(device)
        return self._closed[device]

    def log_probs(self, logits_NV: Tensor, may_stop_N: Tensor | None = None) -> Tensor:
        """Normalised log-probabilities in nats, fp32, of the strings' next token. Shape (N, V)."""
        return self.masked(logits_NV, may_stop_N).log_softmax(dim=-1)


def allowed_mask(vocab_size: int, forbidden: list[int], terminator: int) -> Tensor:
    """Boolean mask over the vocabulary: everything but ``forbidden``; the terminator always in."""
    allowed_V = torch.ones(vocab_size, dtype=torch.bool)
    allowed_V[forbidden] = False
    allowed_V[terminator] = True
    return allowed_V
