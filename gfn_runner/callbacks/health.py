"""Health: stops a run at a loss or gradient that is not finite, and says where it came from."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

from gfn_runner.errors import Problem, UserError
from gfn_runner.module import GFlowNetModule
from gfn_runner.settings import HealthSettings

logger = logging.getLogger(__name__)

_FIX = (
    "lower optim.lr, set optim.grad_clip, use lm.dtype=float32 or bfloat16; "
    "resume=<run folder> goes on from the last good checkpoint"
)


class HealthCallback(L.Callback):
    """Checks the loss before the backward pass and the gradient before the optimizer's step.

    Attributes:
        grad_norm: of the newest optimizer step, before clipping.
        lr: learning rate of the newest optimizer step.
    """

    def __init__(self, options: HealthSettings):
        self.options = options
        self.grad_norm = self.lr = 0.0

    def on_before_backward(self, trainer: L.Trainer, module: GFlowNetModule, loss: Tensor) -> None:
        if not loss.isfinite():
            self._report(
                Problem(
                    f"optimizer step {trainer.global_step + 1}",
                    f"the loss is {loss.item()}; first at condition {_culprit(module)}",
                    "a finite loss",
                    _FIX,
                )
            )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: GFlowNetModule, optimizer: Any
    ) -> None:
        self.lr = optimizer.param_groups[0]["lr"]
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients).item()
        if not torch.tensor(self.grad_norm).isfinite():
            names = [
                name
                for name, p in module.named_parameters()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            output = module.last_output
            keys = ", ".join(repr(c.key) for c in output.conditions[:3]) if output else "?"
            self._report(
                Problem(
                    f"optimizer step {trainer.global_step + 1}",
                    f"the gradient of {len(names)} parameters is not finite, e.g. "
                    f"{names[0] if names else '?'}; the batch's conditions begin with {keys}",
                    "a finite gradient",
                    _FIX,
                )
            )

            for gradient in gradients:
                # Not aborted: the step is passed over.
                gradient.zero_()

    def _report(self, problem: Problem) -> None:
        if self.options.abort_on_non_finite:
            raise UserError(problem)
        logger.warning("%s", problem)


def _culprit(module: GFlowNetModule) -> str:
    """The first condition with a φ that is not finite, and what made it so."""
    output = module.last_output
    assert output is not None  # a loss exists, hence a step
    bad_BS = ~output.phi_BS.isfinite() & output.scores.terminable_BS
    rows = bad_BS.any(dim=1).nonzero()[:, 0].tolist()
    if not rows:
        return "none: every φ is finite, so the regression loss or log Z overflowed"
    row = rows[0]
    state = int(bad_BS[row].nonzero()[0, 0])
    condition = output.conditions[int(output.trajectories.condition_B[row])]
    text = module.lm.decode(output.trajectories.ids(row)[:state])
    log_reward = output.log_reward_BS[row, state].item()
    source = "the log-reward" if not torch.tensor(log_reward).isfinite() else "the policy's log q"
    replayed = " (from the replay buffer)" if output.from_replay else ""
    return (
        f"{condition.key!r}, after {text!r}{replayed}: log R = {log_reward}, "
        f"φ = {output.phi_BS[row, state].item()}; {source} is not finite"
    )
