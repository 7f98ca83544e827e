"""Tensor containers: trajectories, scores, batches and the output of a training step.

For shape letters see ``conditions``. State ``i`` of a trajectory is its prefix of ``i`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gfn_runner.data.conditions import Condition


@dataclass
class Trajectories:
    """Sampled strings, padded on the right. A plain dataclass, so Lightning can move it between devices.

    Attributes:
        token_BT: token ids; arbitrary beyond the length.
        length_B: number of tokens, without the terminator.
        is_action_BT: whether the policy chose the token; ``False`` for a tool's tokens and padding.
        condition_B: index of each row's condition in the batch.
    """

    token_BT: Tensor
    length_B: Tensor
    is_action_BT: Tensor
    condition_B: Tensor

    def __len__(self) -> int:
        return self.token_BT.shape[0]

    @property
    def token_mask_BT(self) -> Tensor:
        """Mask that is ``True`` at the tokens of each row."""
        steps_T = torch.arange(self.token_BT.shape[1], device=self.token_BT.device)
        return steps_T < self.length_B[:, None]

    @property
    def state_mask_BS(self) -> Tensor:
        """Mask that is ``True`` at the states of each row, from the empty prefix to the complete string."""
        steps_S = torch.arange(self.token_BT.shape[1] + 1, device=self.token_BT.device)
        return steps_S <= self.length_B[:, None]

    def at_ends(self, values_BS: Tensor) -> Tensor:
        """Select the values of the complete strings from per-state values. Shape (B,)."""
        return values_BS.gather(1, self.length_B[:, None])[:, 0]

    def rows(self, index: Tensor | slice) -> Trajectories:
        """Select rows by ``index``, and trim padding beyond the longest of them."""
        length_B = self.length_B[index]
        longest = int(length_B.max()) if length_B.numel() else 0
        return Trajectories(
            self.token_BT[index, :longest],
            length_B,
            self.is_action_BT[index, :longest],
            self.condition_B[index],
        )

    def distinct(self) -> tuple[Trajectories, Tensor]:
        """Return each string once per condition, and for each row (B,) the index of its string among them."""
        places: dict[tuple[int, ...], int] = {}
        first: list[int] = []
        inverse = []
        columns = (self.token_BT, self.length_B, self.condition_B)
        for row, (ids, length, condition) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True)
        ):
            key = (condition, *ids[:length])
            if key not in places:
                places[key] = len(first)
                first.append(row)
            inverse.append(places[key])
        device = self.token_BT.device
        chosen = torch.tensor(first, dtype=torch.long, device=device)
        return self.rows(chosen), torch.tensor(inverse, dtype=torch.long, device=device)

    @classmethod
    def concatenated(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """Concatenate trajectories, grouped by condition; the order within a condition is preserved."""
        longest = max(part.token_BT.shape[1] for part in parts)

        def joined(name: str) -> Tensor:
            columns = [getattr(part, name) for part in parts]
            if columns[0].ndim == 2:
                columns = [nn.functional.pad(c, (0, longest - c.shape[1])) for c in columns]
            return torch.cat(columns)

        order_B = joined("condition_B").sort(stable=True).indices
        names = ("token_BT", "length_B", "is_action_BT", "condition_B")
        return cls(*(joined(name)[order_B] for name in names))

    @classmethod
    def empty(cls, conditions: int, device: torch.device) -> Trajectories:
        """Return the empty string for each condition."""
        none: list[tuple[()]] = [()] * conditions
        return cls.from_rows(none, none, range(conditions), device)

    def ids(self, row: int) -> list[int]:
        """Return the token ids of one row, without padding."""
        return self.token_BT[row, : int(self.length_B[row])].tolist()

    def strings(self) -> list[list[int]]:
        """Return the token ids of every row, without padding, with two device syncs in total."""
        rows = zip(self.token_BT.tolist(), self.length_B.tolist(), strict=True)
        return [ids[:length] for ids, length in rows]

    @classmethod
    def from_rows(
        cls,
        tokens: Sequence[Sequence[int]],
        actions: Sequence[Sequence[bool]],
        conditions: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Trajectories:
        """Build padded trajectories from ragged rows.

        Args:
            tokens: token ids per row.
            actions: whether the policy chose each token, per row.
            conditions: index of each row's condition.
        """
        longest = max(map(len, tokens), default=0)
        token_BT = torch.zeros(len(tokens), longest, dtype=torch.long)
        is_action_BT = torch.zeros(len(tokens), longest, dtype=torch.bool)
        for row, (ids, chosen) in enumerate(zip(tokens, actions, strict=True)):
            token_BT[row, : len(ids)] = torch.tensor(list(ids), dtype=torch.long)
            is_action_BT[row, : len(ids)] = torch.tensor(list(chosen), dtype=torch.bool)
        length_B = torch.tensor([len(ids) for ids in tokens], dtype=torch.long)
        condition_B = torch.tensor(list(conditions), dtype=torch.long)
        return cls(
            token_BT.to(device),
            length_B.to(device),
            is_action_BT.to(device),
            condition_B.to(device),
        )


@dataclass
class PolicyScores:
    """Log-probabilities of given trajectories under a policy, in nats, fp32.

    Attributes:
        log_pf_BT: log q(z_t | z_<t); 0 if the token is not an action.
        log_pf_stop_BS: log q(⊤ | z_≤i); 0 where termination is forced.
        terminable_BS: states at which the string may end; in a training step, only those of them that the
            objective compares.
        value_BS: predictions of the value head, if there is one.
    """

    log_pf_BT: Tensor
    log_pf_stop_BS: Tensor
    terminable_BS: Tensor
    value_BS: Tensor | None = None

    def log_q_B(self, trajectories: Trajectories) -> Tensor:
        """Return log q(z ⊤) of the complete strings, in nats. Shape (B,)."""
        return self.log_pf_BT.sum(dim=1) + trajectories.at_ends(self.log_pf_stop_BS)


@dataclass
class ReplayDraw:
    """Trajectories drawn from the replay buffer, with their stored untempered log-rewards.

    Attributes:
        trajectories: the strings; ``condition_B`` indexes the batch's conditions.
        log_reward_BS: log-reward in nats of every state that the objective compares; −inf elsewhere.
        beside_fresh: whether they are added to fresh trajectories of the batch, or replace them.
    """

    trajectories: Trajectories
    log_reward_BS: Tensor
    beside_fresh: bool = False


@dataclass
class Batch:
    """Input of a training step: conditions, and a replay draw if the replay callback added one.

    Attributes:
        conditions: the conditions, all different.
        index: number of the batch since the start of the run; its random streams are derived from it.
        replay: trajectories to train on instead of, or in addition to, fresh ones.
    """

    conditions: list[Condition]
    index: int = 0
    replay: ReplayDraw | None = None


@dataclass
class StepOutput:
    """Output of a training step for the callbacks; all tensors are detached.

    Attributes:
        conditions: conditions of the batch.
        trajectories, log_reward_BS, scores: as used in the loss; the log-reward is untempered.
        phi_BS: φ of every state in nats; meaningful at terminable states only.
        from_replay: whether the trajectories came from the buffer.
        exploration_temperature: sampling temperature; 1 is on-policy, NaN for the buffer.
        has_rewards: whether log R was computed; if not, log R and φ are NaN.
    """

    conditions: list[Condition]
    trajectories: Trajectories
    log_reward_BS: Tensor
    scores: PolicyScores
    phi_BS: Tensor
    from_replay: bool
    exploration_temperature: float = 1.0
    has_rewards: bool = True

    def rows(self, chosen_B: Tensor) -> StepOutput:
        """Return the output restricted to the chosen rows."""
        trajectories = self.trajectories.rows(chosen_B)
        n_tokens = trajectories.token_BT.shape[1]
        s = self.scores
        return replace(
            self,
            trajectories=trajectories,
            log_reward_BS=self.log_reward_BS[chosen_B, : n_tokens + 1],
            scores=PolicyScores(
                s.log_pf_BT[chosen_B, :n_tokens],
                s.log_pf_stop_BS[chosen_B, : n_tokens + 1],
                s.terminable_BS[chosen_B, : n_tokens + 1],
            ),
            phi_BS=self.phi_BS[chosen_B, : n_tokens + 1],
        )
