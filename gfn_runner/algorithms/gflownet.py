"""GFlowNet training: sample, score, compute φ, and minimize a balance objective on it.

Hu et al. 2024 (arXiv:2310.04363). A batch's trajectories are fresh samples of the policy, unless a callback
has added a draw from the replay buffer, which replaces or joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.data.conditions import Condition
from gfn_runner.data.trajectories import Batch, ReplayDraw, StepOutput, Trajectories
from gfn_runner.distributed.ranks import all_gather
from gfn_runner.lm.scoring import score_policy
from gfn_runner.objectives.losses import Objective
from gfn_runner.objectives.phi import phi

if TYPE_CHECKING:
    from gfn_runner.tasks.base import GFlowNetModule


def joined(
    fresh: Trajectories, log_reward_BS: Tensor, replay: ReplayDraw
) -> tuple[Trajectories, Tensor, Tensor]:
    """Join fresh trajectories with those of the replay buffer, grouped by condition.

    Returns:
        All trajectories, their log-rewards (B, S), and which rows are fresh (B,).
    """
    rows = Trajectories.concatenated([fresh, replay.trajectories])
    n_states = rows.token_BT.shape[1] + 1
    order_B = torch.cat([fresh.condition_B, replay.trajectories.condition_B]).sort(stable=True)[1]
    reward_BS = torch.cat(
        [
            nn.functional.pad(part_BS, (0, n_states - part_BS.shape[1]), value=float("-inf"))
            for part_BS in (log_reward_BS, replay.log_reward_BS)
        ]
    )
    return rows, reward_BS[order_B], order_B < len(fresh)


class GFlowNet(Algorithm):
    """GFlowNet training of the policy with a balance objective.

    Args:
        objective: weights on pairs of φ, and the regression loss on their differences.

    Attributes:
        log_z: learned log Z of every training condition, nats, for objectives that need it; NaN marks a
            condition that was never visited.
    """

    label: ClassVar[str] = "GFlowNet"
    uses_replay = True

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        self.needs_pairs_between = objective.needs_pairs_between
        self.needs_prefixes = objective.needs_prefixes

    def setup(self, module: GFlowNetModule) -> None:
        self.place = {condition.key: place for place, condition in enumerate(module.conditions)}
        if self.objective.needs_log_z:
            self.log_z = nn.Parameter(torch.full((len(module.conditions),), float("nan")))
            self._log_z_in_step: set[int] = set()  # places whose log Z is in the step's loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        if not self.objective.needs_log_z:
            return []
        group: dict[str, Any] = {"params": [self.log_z], "weight_decay": 0.0}
        if hasattr(self.objective, "log_z_lr"):
            group["lr"] = self.objective.log_z_lr
        return [group]

    def training_step(self, module: GFlowNetModule, batch: Batch) -> dict[str, Any]:
        replay = batch.replay
        from_replay = replay is not None and not replay.beside_fresh
        prompts = module.prompts(batch.conditions)
        fresh_B = None  # all rows
        with module.lm.in_step():
            if replay is not None and from_replay:
                trajectories, log_reward_BS = replay.trajectories, replay.log_reward_BS
                temperature = float("nan")
            else:
                temperature = module.exploration_temperature(batch.index)
                with module.phases("sample"):
                    trajectories = module.explore(prompts, batch.index, temperature)
                with module.phases("reward"):
                    log_reward_BS = module.log_reward(batch.conditions, trajectories)
                if replay is not None:
                    trajectories, log_reward_BS, fresh_B = joined(
                        trajectories, log_reward_BS, replay
                    )
        with module.phases("policy"):
            scores = score_policy(module.lm, prompts, trajectories, module.rule)
        scores.terminable_BS = self.counted_BS(scores.terminable_BS, trajectories.length_B)
        with module.phases("objective"):
            phi_BS = phi(scores, log_reward_BS, module.reward_temperature)
            loss = self.objective(
                phi_BS,
                scores.terminable_BS,
                trajectories.length_B,
                trajectories.condition_B,
                self._log_z(batch.conditions, trajectories, phi_BS, from_replay),
            )
        scores.log_pf_BT = scores.log_pf_BT.detach()
        scores.log_pf_stop_BS = scores.log_pf_stop_BS.detach()
        output = StepOutput(
            batch.conditions,
            trajectories,
            log_reward_BS,
            scores,
            phi_BS.detach(),
            from_replay,
            temperature,
        )
        return {"loss": loss, "output": output if fresh_B is None else output.rows(fresh_B)}

    def counted_BS(self, terminable_BS: Tensor, length_B: Tensor) -> Tensor:
        return self.objective.counted_BS(terminable_BS, length_B)

    # -- learned log Z ------------------------------------------------------------------------

    def _log_z(
        self,
        conditions: Sequence[Condition],
        trajectories: Trajectories,
        phi_BS: Tensor,
        from_replay: bool,
    ) -> Tensor | None:
        """Return learned log Z per condition, initialized to the mean terminal φ when first sampled.

        A batch that initializes log Z treats it as a constant: the gradient at the mean would be rounding
        noise, which Adam turns into a full step. A replay draw may come first: it is compared with its own
        mean and initializes nothing, since one demonstration's φ is no estimate of log Z. A non-finite
        mean initializes nothing either: the step is skipped, and the condition stays unvisited.
        """
        if not self.objective.needs_log_z:
            return None
        device = phi_BS.device
        place_C = torch.tensor([self.place[c.key] for c in conditions], device=device)
        phi_B = trajectories.at_ends(phi_BS.detach())
        rows_CB = trajectories.condition_B == torch.arange(len(conditions), device=device)[:, None]
        mean_C = (phi_B * rows_CB).sum(dim=1) / rows_CB.sum(dim=1).clamp(min=1)
        known_C = ~self.log_z.detach()[place_C].isnan()
        begun_C = ~known_C & mean_C.isfinite() & (not from_replay)
        self._begin_log_z(
            place_C[known_C].tolist(), place_C[begun_C].tolist(), mean_C[begun_C].tolist()
        )
        # Other ranks may have initialized some of them too.
        now_C = self.log_z.detach()[place_C]
        constant_C = torch.where(now_C.isnan(), mean_C, now_C)
        return torch.where(known_C, self.log_z[place_C], constant_C)

    @torch.no_grad()
    def _begin_log_z(self, known: list[int], places: list[int], means: list[float]) -> None:
        """Initialize log Z at ``places`` on all ranks; record which known ones are in any rank's loss."""
        begun: dict[int, list[float]] = {}
        for in_step, own in all_gather((known, list(zip(places, means, strict=True)))):
            self._log_z_in_step.update(in_step)
            for place, mean in own:
                begun.setdefault(place, []).append(mean)
        for place, values in begun.items():
            self.log_z[place] = sum(values) / len(values)

    def before_optimizer_step(self, module: GFlowNetModule) -> None:
        # By now log Z contains what the training steps have initialized.
        if self.objective.needs_log_z:
            self._log_z_before_C = self.log_z.detach().clone()

    @torch.no_grad()
    def after_optimizer_step(self, module: GFlowNetModule) -> None:
        """Restore log Z of conditions outside the step's loss, which Adam's momentum has moved."""
        if not self.objective.needs_log_z:
            return
        moves_C = torch.zeros_like(self.log_z, dtype=torch.bool)
        moves_C[list(self._log_z_in_step)] = True
        self._log_z_in_step.clear()
        self.log_z.copy_(torch.where(moves_C, self.log_z, self._log_z_before_C))

    def missing_value_is_finite(self, name: str, parameter: Tensor) -> bool:
        return self.objective.needs_log_z and parameter is self.log_z

    def on_load_checkpoint(self, module: GFlowNetModule, checkpoint: dict[str, Any]) -> None:
        """Reset log Z, to be estimated anew, if an M-step has since changed the model of the reward."""
        log_z = checkpoint["state_dict"].get("algorithm.log_z")
        if log_z is not None and checkpoint.get("m_steps", 0) != module.lm.m_steps:
            log_z.fill_(float("nan"))
