"""Losses on pairs of φ, as pure functions of tensors.

The policy is exact if and only if φ (see ``phi``) is one constant per condition. So every balance
objective is a choice of weights on pairs of φ and of a regression loss ρ on their differences:

    L = Σ w_ab ρ(φ_a − φ_b) / Σ w_ab,  averaged over groups (trajectories or conditions).

Sources: SubTB(λ): Madan et al. 2023, arXiv:2209.12782, in the form of Hu et al. 2024,
arXiv:2310.04363, eq. 3; detailed balance: Bengio et al. 2023, arXiv:2111.09266; trajectory balance:
Malkin et al. 2022, arXiv:2201.13259; its VarGrad form: Zhang et al. 2023, arXiv:2305.14594;
regression losses: Hu et al. 2024, arXiv:2410.02596.

Letters of shapes: G groups, M members of the largest group; others as in ``conditions``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

if TYPE_CHECKING:
    from torch import Tensor

    from gfn_runner.objectives.phi import Members


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Regression:
    """Regression loss on a difference d of φ, in nats; every kind is d² near 0.

    Attributes:
        kind: ``squared`` d²; ``huber`` d² up to ``delta`` and linear beyond; ``cosh`` 2 (cosh d − 1),
            the shifted cosh, which penalizes large residuals more.
        delta: threshold of ``huber``, nats.
    """

    kind: Literal["squared", "huber", "cosh"] = "squared"
    delta: Annotated[float, Field(gt=0)] = 1.0

    # Beyond this many nats the cosh continues as its tangent, so that it cannot overflow.
    _COSH_LIMIT: ClassVar[float] = 10.0

    def __call__(self, difference: Tensor) -> Tensor:
        if self.kind == "squared":
            return difference.square()
        size = difference.abs()
        if self.kind == "huber":
            linear = 2 * self.delta * size - self.delta**2
            return difference.square().where(size <= self.delta, linear)
        inside = size.clamp(max=self._COSH_LIMIT)
        slope = 2 * math.sinh(self._COSH_LIMIT)
        # 4 sinh²(d/2) = 2 (cosh d − 1), without its cancellation near 0.
        return 4 * (inside / 2).sinh().square() + slope * (size - inside)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Objective(ABC):
    """Balance objective: a choice of weights on pairs of φ.

    Attributes:
        regression: regression loss on each difference.
        needs_log_z: whether the loss uses a learned log Z per condition.
        group: whether the states of one trajectory or of one condition form pairs.
        needs_pairs_between: whether a condition with a single trajectory gives no loss.
        needs_prefixes: whether the loss uses φ of a string's prefixes; else their rewards are not needed.
    """

    regression: Regression = Field(default_factory=Regression)

    needs_log_z: ClassVar[bool] = False
    group: ClassVar[Literal["trajectory", "condition"]] = "trajectory"
    needs_pairs_between: ClassVar[bool] = False
    needs_prefixes: ClassVar[bool] = True

    @property
    def pairs_between(self) -> bool:
        """Whether different trajectories of one condition form pairs, if there are several."""
        return self.group == "condition"

    def counted_BS(self, terminable_BS: Tensor, length_B: Tensor) -> Tensor:
        """Return the states whose φ is used: all those where a string may end, or only where it did."""
        if self.needs_prefixes:
            return terminable_BS
        from gfn_runner.objectives.phi import terminal_states

        return terminal_states(terminable_BS, length_B)

    @abstractmethod
    def pair_weights(self, members: Members) -> Tensor:
        """Return the non-negative weight of every ordered pair (a, b). Shape (G, M, M).

        Padding is masked afterwards. A symmetric choice counts each pair twice, which cancels in the
        division by the total weight.
        """

    def __call__(
        self,
        phi_BS: Tensor,
        terminable_BS: Tensor,
        length_B: Tensor,
        condition_B: Tensor,
        log_z_C: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of a batch, in squared nats (for squared regression).

        Args:
            phi_BS: φ of every state, with gradients.
            terminable_BS: which states count.
            length_B: index of each trajectory's terminal state.
            condition_B: index of each trajectory's condition.
            log_z_C: learned log Z per condition, for objectives that need it.

        Returns:
            A scalar: the mean over groups that have a pair. Because groups have equal weight, it is
            independent of padding, of the order of rows and of the split into micro-batches.
        """
        from gfn_runner.objectives.phi import group_states

        members = group_states(phi_BS, terminable_BS, length_B, condition_B, by=self.group)
        both_GMM = members.valid_GM[:, :, None] & members.valid_GM[:, None, :]
        weight_GMM = self.pair_weights(members) * both_GMM
        difference_GMM = members.phi_GM[:, :, None] - members.phi_GM[:, None, :]
        total_G = weight_GMM.sum(dim=(1, 2))
        loss_G = (weight_GMM * self.regression(difference_GMM)).sum(dim=(1, 2))
        has_pair_G = total_G > 0
        loss_G = loss_G / total_G.where(has_pair_G, 1.0)
        return (loss_G * has_pair_G).sum() / has_pair_G.sum().clamp(min=1)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class SubTB(Objective):
    """Subtrajectory balance: all pairs i < j of one trajectory, with weight λ^(j−i−1).

    λ = 1 is the paper's loss; λ → 0 is detailed balance.
    """

    lam: Annotated[float, Field(gt=0)] = 1.0

    def pair_weights(self, members: Members) -> Tensor:
        span_GMM = members.rank_GM[:, None, :] - members.rank_GM[:, :, None]
        weight_GMM = self.lam ** (span_GMM - 1).clamp(min=0).to(members.phi_GM.dtype)
        return weight_GMM * (span_GMM > 0)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class DetailedBalance(Objective):
    """Detailed balance: pairs of adjacent terminable states of one trajectory."""

    def pair_weights(self, members: Members) -> Tensor:
        span_GMM = members.rank_GM[:, None, :] - members.rank_GM[:, :, None]
        return (span_GMM == 1).to(members.phi_GM.dtype)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class VarGradTB(Objective):
    """Trajectory balance without log Z: pairs of terminal states of different trajectories."""

    group: ClassVar[Literal["trajectory", "condition"]] = "condition"
    needs_pairs_between: ClassVar[bool] = True
    needs_prefixes: ClassVar[bool] = False

    def pair_weights(self, members: Members) -> Tensor:
        terminal_GM = members.is_terminal_GM
        apart_GMM = members.row_GM[:, :, None] != members.row_GM[:, None, :]
        both_GMM = terminal_GM[:, :, None] & terminal_GM[:, None, :]
        return (both_GMM & apart_GMM).to(members.phi_GM.dtype)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class TrajectoryBalance(Objective):
    """Trajectory balance: terminal φ against a learned log Z per condition.

    Attributes:
        log_z_lr: learning rate of log Z (Adam: about this many nats per step in which the condition
            occurs). A condition's log Z starts at the mean terminal φ of its first fresh batch.

    A learned log Z belongs to one reward temperature and lags behind when that falls;
    ``objective=vargrad`` or ``callbacks/reward_tempering=constant`` avoids this.
    """

    log_z_lr: Annotated[float, Field(gt=0)] = 0.05

    needs_log_z: ClassVar[bool] = True
    group: ClassVar[Literal["trajectory", "condition"]] = "condition"
    needs_prefixes: ClassVar[bool] = False

    def pair_weights(self, members: Members) -> Tensor:
        return members.phi_GM.new_zeros(*members.phi_GM.shape, members.phi_GM.shape[1])

    def __call__(
        self,
        phi_BS: Tensor,
        terminable_BS: Tensor,
        length_B: Tensor,
        condition_B: Tensor,
        log_z_C: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`Objective.__call__`; every trajectory has the same weight."""
        assert log_z_C is not None  # needs_log_z
        phi_B = phi_BS.gather(1, length_B[:, None])[:, 0]
        ended_B = terminable_BS.gather(1, length_B[:, None])[:, 0]
        loss_B = self.regression(phi_B - log_z_C.index_select(0, condition_B)) * ended_B
        return loss_B.sum() / ended_B.sum().clamp(min=1)


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class JointBalance(Objective):
    """Balance of all pairs within and between the trajectories of one condition, which share one log Z.

    Every trajectory has the same weight, spread evenly over its states, so that long strings do not
    dominate short ones. For squared regression this is twice the weighted variance of φ, in its unbiased
    form.

    Attributes:
        between: weight of a pair of different trajectories, relative to one within; 1 treats them
            equally, 0 leaves the pairs of SubTB(1), with weight 1 − 1/n for a trajectory of n states.
    """

    between: Annotated[float, Field(ge=0)] = 1.0

    group: ClassVar[Literal["trajectory", "condition"]] = "condition"

    @property
    def pairs_between(self) -> bool:
        return self.between > 0

    def pair_weights(self, members: Members) -> Tensor:
        same_GMM = members.row_GM[:, :, None] == members.row_GM[:, None, :]
        n_states_GM = (same_GMM & members.valid_GM[:, None, :]).sum(dim=2).clamp(min=1)
        share_GM = 1.0 / n_states_GM.to(members.phi_GM.dtype)
        weight_GMM = share_GM[:, :, None] * share_GM[:, None, :]
        weight_GMM = weight_GMM.where(same_GMM, self.between * weight_GMM)
        # A state does not form a pair with itself.
        itself_GMM = same_GMM & (members.rank_GM[:, :, None] == members.rank_GM[:, None, :])
        return weight_GMM * ~itself_GMM
