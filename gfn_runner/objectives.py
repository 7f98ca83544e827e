"""φ and the losses on its pairs: pure functions of tensors; knows no model and no text.

For every state, φ_i = log R(z_≤i ⊤)/T − Σ_{k≤i} log q(z_k|z_<k) − log q(⊤|z_≤i). The policy is exact
if and only if φ is one constant per condition, and then that constant is log Z. So every balance
objective is a choice of weights on pairs of φ, and a regression loss ρ on their differences:

    L = Σ w_ab ρ(φ_a − φ_b) / Σ w_ab,  averaged over groups (trajectories or conditions).

Sources: SubTB(λ): Madan et al. 2023, arXiv:2209.12782, in the form of Hu et al. 2024,
arXiv:2310.04363, eq. 3; detailed balance: Bengio et al. 2023, arXiv:2111.09266; trajectory balance:
Malkin et al. 2022, arXiv:2201.13259; its VarGrad form: Zhang et al. 2023, arXiv:2305.14594;
regression losses: Hu et al. 2024, arXiv:2410.02596.

Letters of shapes: G groups, M members of the largest group; else as in ``types``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from gfn_runner.types import PolicyScores


def phi(scores: PolicyScores, log_reward_BS: Tensor, temperature: float) -> Tensor:
    """φ of every state, in nats; 0 where the string cannot end.

    Args:
        scores: of the policy.
        log_reward_BS: untempered log-rewards in nats.
        temperature: reward temperature T; the only place where it enters.
    """
    log_pf_BT = scores.log_pf_BT
    zero_B1 = log_pf_BT.new_zeros(log_pf_BT.shape[0], 1)
    log_pf_prefix_BS = torch.cat([zero_B1, log_pf_BT.cumsum(dim=1)], dim=1)
    tempered_BS = log_reward_BS.masked_fill(~scores.terminable_BS, 0.0) / temperature
    phi_BS = tempered_BS - log_pf_prefix_BS - scores.log_pf_stop_BS
    return phi_BS.masked_fill(~scores.terminable_BS, 0.0)


@dataclass(frozen=True)
class Members:
    """φ of the states of each group, padded.

    Attributes:
        phi_GM: nats.
        valid_GM: ``False`` at padding.
        row_GM: trajectory that the state belongs to.
        rank_GM: its place among the trajectory's terminable states, from 0.
        is_terminal_GM: whether the trajectory ended there.
        condition_G: index of the group's condition.
    """

    phi_GM: Tensor
    valid_GM: Tensor
    row_GM: Tensor
    rank_GM: Tensor
    is_terminal_GM: Tensor
    condition_G: Tensor


def group_states(
    phi_BS: Tensor, terminable_BS: Tensor, length_B: Tensor, condition_B: Tensor, by: str
) -> Members:
    """Collect the terminable states of each trajectory (``by="trajectory"``) or condition.

    A condition's trajectories need not be neighbours. Trajectories without a terminable state
    drop out.
    """
    rows, states = phi_BS.shape
    row_BS = torch.arange(rows, device=phi_BS.device)[:, None].expand(rows, states)
    rank_BS = terminable_BS.long().cumsum(dim=1) - 1
    state_S = torch.arange(states, device=phi_BS.device)
    terminal_BS = (state_S == length_B[:, None]) & terminable_BS
    label_B = condition_B if by == "condition" else row_BS[:, 0]
    group_B = label_B.unique(return_inverse=True)[1]
    keep_BS = terminable_BS.flatten()
    group_N = group_B[:, None].expand(rows, states).flatten()[keep_BS]
    order_N = group_N.argsort(stable=True)
    group_N = group_N[order_N]
    counts_G = torch.bincount(group_N, minlength=int(group_B.max()) + 1)
    starts_G = counts_G.cumsum(0) - counts_G
    slot_N = torch.arange(len(group_N), device=phi_BS.device) - starts_G[group_N]
    shape = (len(counts_G), int(counts_G.max()))

    def padded(values_BS: Tensor) -> Tensor:
        values_N = values_BS.flatten()[keep_BS][order_N]
        return values_N.new_zeros(shape).index_put((group_N, slot_N), values_N)

    valid_GM = padded(torch.ones_like(terminable_BS))
    condition_GM = padded(condition_B[:, None].expand(rows, states).contiguous())
    alive_G = counts_G > 0
    return Members(
        padded(phi_BS)[alive_G],
        valid_GM[alive_G],
        padded(row_BS.contiguous())[alive_G],
        padded(rank_BS)[alive_G],
        padded(terminal_BS)[alive_G],
        condition_GM[alive_G, 0],
    )


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Regression:
    """The loss on one difference d of φ, in nats; each is d² near 0.

    Attributes:
        kind: ``squared`` d²; ``huber`` d² up to ``delta`` and linear beyond; ``cosh`` 2 (cosh d − 1),
            the shifted cosh, which punishes large residuals harder.
        delta: of ``huber``, nats.
    """

    kind: Literal["squared", "huber", "cosh"] = "squared"
    delta: Annotated[float, Field(gt=0)] = 1.0

    # Beyond this many nats the cosh would overflow; it goes on as its tangent.
    _COSH_LIMIT: ClassVar[float] = 10.0

    def __call__(self, difference: Tensor) -> Tensor:
        if self.kind == "squared":
            return difference.square()
        size = difference.abs()
        if self.kind == "huber":
            linear = 2 * self.delta * size - self.delta**2
            return torch.where(size <= self.delta, difference.square(), linear)
        inside = size.clamp(max=self._COSH_LIMIT)
        limit = torch.tensor(self._COSH_LIMIT)
        slope = 2 * torch.sinh(limit).item()
        # 4 sinh²(d/2) = 2 (cosh d − 1), without its cancellation near 0.
        return 4 * torch.sinh(inside / 2).square() + slope * (size - inside)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Objective(ABC):
    """A choice of weights on pairs of φ.

    Attributes:
        regression: the loss on each difference.
        needs_log_z: whether a learned log Z per condition takes part.
        group: whose states form pairs: one trajectory's or one condition's.
        needs_pairs_between: whether a condition with a single trajectory gives no loss.
        needs_prefixes: whether φ of a string's prefixes takes part; else their rewards need not be known.
    """

    regression: Regression = Field(default_factory=Regression)

    needs_log_z: ClassVar[bool] = False
    group: ClassVar[Literal["trajectory", "condition"]] = "trajectory"
    needs_pairs_between: ClassVar[bool] = False
    needs_prefixes: ClassVar[bool] = True

    def counted_BS(self, terminable_BS: Tensor, length_B: Tensor) -> Tensor:
        """States whose φ takes part: those where a string may end, or only where it did."""
        if self.needs_prefixes:
            return terminable_BS
        state_S = torch.arange(terminable_BS.shape[1], device=terminable_BS.device)
        return terminable_BS & (state_S == length_B[:, None])

    @abstractmethod
    def pair_weights(self, members: Members) -> Tensor:
        """Non-negative weight of every ordered pair (a, b). Shape (G, M, M).

        Padding is taken out afterwards. A symmetric choice counts each pair twice, which the
        division by the total weight undoes.
        """

    def __call__(
        self,
        phi_BS: Tensor,
        terminable_BS: Tensor,
        length_B: Tensor,
        condition_B: Tensor,
        log_z_C: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, in squared nats (for squared regression).

        Args:
            phi_BS: φ of every state, with gradients.
            terminable_BS: which states count.
            length_B: index of each trajectory's terminal state.
            condition_B: index of each trajectory's condition.
            log_z_C: learned log Z per condition, for the objectives that need it.

        Returns:
            A scalar: the mean over groups that have a pair. Groups of equal weight make it
            independent of padding, of the order of rows and of the cut into micro-batches.
        """
        members = group_states(phi_BS, terminable_BS, length_B, condition_B, by=self.group)
        both_GMM = members.valid_GM[:, :, None] & members.valid_GM[:, None, :]
        weight_GMM = self.pair_weights(members) * both_GMM
        difference_GMM = members.phi_GM[:, :, None] - members.phi_GM[:, None, :]
        total_G = weight_GMM.sum(dim=(1, 2))
        loss_G = (weight_GMM * self.regression(difference_GMM)).sum(dim=(1, 2))
        has_pair_G = total_G > 0
        loss_G = loss_G / total_G.clamp(min=torch.finfo(total_G.dtype).tiny)
        return (loss_G * has_pair_G).sum() / has_pair_G.sum().clamp(min=1)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SubTB(Objective):
    """Subtrajectory balance: all pairs i < j of one trajectory, weight λ^(j−i−1).

    λ = 1 is the paper's loss; λ → 0 is detailed balance.
    """

    lam: Annotated[float, Field(gt=0)] = 1.0

    def pair_weights(self, members: Members) -> Tensor:
        span_GMM = members.rank_GM[:, None, :] - members.rank_GM[:, :, None]
        weight_GMM = self.lam ** (span_GMM - 1).clamp(min=0).float()
        return weight_GMM * (span_GMM > 0)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class DetailedBalance(Objective):
    """Neighbouring terminable states of one trajectory."""

    def pair_weights(self, members: Members) -> Tensor:
        span_GMM = members.rank_GM[:, None, :] - members.rank_GM[:, :, None]
        return (span_GMM == 1).float()


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class VarGradTB(Objective):
    """Trajectory balance without log Z: terminal states of different trajectories."""

    group: ClassVar[Literal["trajectory", "condition"]] = "condition"
    needs_pairs_between: ClassVar[bool] = True
    needs_prefixes: ClassVar[bool] = False

    def pair_weights(self, members: Members) -> Tensor:
        terminal_GM = members.is_terminal_GM
        apart_GMM = members.row_GM[:, :, None] != members.row_GM[:, None, :]
        return (terminal_GM[:, :, None] & terminal_GM[:, None, :] & apart_GMM).float()


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TrajectoryBalance(Objective):
    """Trajectory balance: terminal φ against a learned log Z per condition.

    Attributes:
        log_z_lr: learning rate of log Z (Adam: about so many nats a step in which the condition
            occurs). A condition's log Z starts at the mean terminal φ of its first fresh batch.

    A learned log Z belongs to one reward temperature and lags behind a falling one;
    ``objective=vargrad`` or ``callbacks/tempering=constant`` has no such lag.
    """

    log_z_lr: Annotated[float, Field(gt=0)] = 0.05

    needs_log_z: ClassVar[bool] = True
    group: ClassVar[Literal["trajectory", "condition"]] = "condition"
    needs_prefixes: ClassVar[bool] = False

    def pair_weights(self, members: Members) -> Tensor:
        return torch.zeros_like(members.phi_GM[:, :, None] - members.phi_GM[:, None, :])

    def __call__(
        self,
        phi_BS: Tensor,
        terminable_BS: Tensor,
        length_B: Tensor,
        condition_B: Tensor,
        log_z_C: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Objective.__call__`; every trajectory counts the same."""
        if log_z_C is None:
            raise ValueError("trajectory balance with a learned log Z needs log_z_C")
        phi_B = phi_BS.gather(1, length_B[:, None])[:, 0]
        ended_B = terminable_BS.gather(1, length_B[:, None])[:, 0]
        loss_B = self.regression(phi_B - log_z_C[condition_B]) * ended_B
        return loss_B.sum() / ended_B.sum().clamp(min=1)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class JointBalance(Objective):
    """All pairs within and between the trajectories of one condition: they share one log Z.

    Every trajectory has the same weight, spread evenly over its states, so that long strings do not
    drown short ones. For squared regression this is twice the weighted variance of φ, in its unbiased
    form.

    Attributes:
        between: weight of a pair of different trajectories, relative to one within; 1 treats them
            alike, 0 leaves the pairs of SubTB(1), a trajectory of n states weighing 1 − 1/n.
    """

    between: Annotated[float, Field(ge=0)] = 1.0

    group: ClassVar[Literal["trajectory", "condition"]] = "condition"

    def pair_weights(self, members: Members) -> Tensor:
        same_GMM = members.row_GM[:, :, None] == members.row_GM[:, None, :]
        n_states_GM = (same_GMM & members.valid_GM[:, None, :]).sum(dim=2).clamp(min=1)
        share_GM = 1.0 / n_states_GM
        weight_GMM = share_GM[:, :, None] * share_GM[:, None, :]
        weight_GMM = torch.where(same_GMM, weight_GMM, self.between * weight_GMM)
        # A pair of a state with itself is no pair.
        return weight_GMM * ~torch.eye(
            weight_GMM.shape[1], dtype=torch.bool, device=weight_GMM.device
        )


def phi_spread(phi_BS: Tensor, terminable_BS: Tensor, condition_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of φ over all terminable states of each condition, in nats.

    Returns:
        ``mean_C`` (the free estimate of log Z) and ``spread_C``, for the conditions that occur, in
        the order of their index.
    """
    group_B = condition_B.unique(return_inverse=True)[1]
    n_groups = int(group_B.max()) + 1
    weight_BS = terminable_BS.float()
    group_BS = group_B[:, None].expand_as(phi_BS)

    def total(values_BS: Tensor) -> Tensor:
        zero_C = phi_BS.new_zeros(n_groups)
        return zero_C.index_add(0, group_BS.flatten(), (values_BS * weight_BS).flatten())

    count_C = total(torch.ones_like(phi_BS)).clamp(min=1)
    mean_C = total(phi_BS) / count_C
    variance_C = total((phi_BS - mean_C[group_B][:, None]).square()) / count_C
    return mean_C, variance_C.sqrt()


def log_z_bound(phi_terminal_K: Tensor) -> Tensor:
    """log mean exp φ over K on-policy samples: the importance-weighted lower bound on log Z."""
    return phi_terminal_K.logsumexp(dim=0) - math.log(len(phi_terminal_K))
