"""Skip optimizer steps with a non-finite loss or gradient; stop a run after too many in a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import lightning as L
import torch
from pydantic import Field
from torch import Tensor

from gfn_runner.algorithms.skipped_steps import SkippedSteps
from gfn_runner.distributed.ranks import all_gather
from gfn_runner.tasks.base import GFlowNetModule

_FIX = (
    "lower optimizer.lr, set trainer.gradient_clip_val, use lm.dtype=float32 or bfloat16; "
    "resume=<run folder> continues from the last good checkpoint"
)
_MOST_NAMED = 5


class SkipNonFiniteSteps(L.Callback):
    """Checks the loss before the backward pass and the gradient before the optimizer step.

    A skipped step changes neither the weights nor the optimizer's moments. It still counts as a step, so
    schedules and batches are not shifted.

    Args:
        max_in_a_row: number of consecutive skipped steps after which the run stops with an error that names
            the conditions; 1 stops at the first one, 0 never stops.

    Attributes:
        grad_norm: gradient norm of the latest optimizer step, before clipping; non-finite if it was skipped.
        steps: counter of the optimizer steps skipped since the start of the run.
    """

    def __init__(self, max_in_a_row: Annotated[int, Field(ge=0)] = 5) -> None:
        self.steps = SkippedSteps(max_in_a_row, _FIX)
        self.grad_norm = 0.0
        self._reasons: list[str] = []  # of the current step

    def on_before_backward(self, trainer: L.Trainer, module: GFlowNetModule, loss: Tensor) -> None:
        if not loss.isfinite():
            self._reasons.append(f"the loss is {loss.item()}; first at {_culprit(module)}")

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: GFlowNetModule, optimizer: Any
    ) -> None:
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        self.grad_norm = torch.nn.utils.get_total_norm(list(gradients.values())).item()
        # All ranks must skip, or none, to keep their weights identical. A non-finite loss on one rank
        # makes the averaged gradient non-finite on all, so the conditions of other ranks are reported
        # only if every loss was finite.
        output = module.last_output
        first = [condition.key for condition in output.conditions[:3]] if output else []
        ranks = all_gather((self._reasons, math.isfinite(self.grad_norm), first))
        self._reasons = []
        found = list(dict.fromkeys(reason for reasons, _, _ in ranks for reason in reasons))
        if not found and not all(finite for _, finite, _ in ranks):
            keys = dict.fromkeys(key for _, _, own in ranks for key in own)
            found = [_gradient_problem(gradients, keys)]
        reason = "; and ".join(found[:_MOST_NAMED]) or None
        if not self.steps.passes(trainer.global_step + 1, reason):
            for parameter in module.parameters():
                # Optimizers skip parameters without gradient; a zero gradient would still apply momentum.
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.steps.total, "in_a_row": list(self.steps.in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps.total = state["skipped"]
        self.steps.in_a_row.clear()  # in EM, every E-step loads the previous checkpoint
        self.steps.in_a_row.extend(state["in_a_row"])


def _gradient_problem(gradients: Mapping[str, Tensor], keys: Iterable[str]) -> str:
    names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return (
        f"the gradient of {len(names)} parameters is not finite, e.g. {names[0] if names else '?'}; "
        f"the batch's conditions begin with {', '.join(map(repr, keys)) or '?'}"
    )


def _culprit(module: GFlowNetModule) -> str:
    """Describe the first condition with a non-finite φ, and its cause."""
    output = module.last_output
    assert output is not None  # there is a loss, so there was a step
    bad_BS = ~output.phi_BS.isfinite() & output.scores.terminable_BS
    rows = bad_BS.any(dim=1).nonzero()[:, 0].tolist()
    if not rows:
        keys = ", ".join(repr(condition.key) for condition in output.conditions[:3])
        return f"conditions {keys} …: every φ is finite, so the regression loss or log Z overflowed"
    row = rows[0]
    state = int(bad_BS[row].nonzero()[0, 0])
    condition = output.conditions[int(output.trajectories.condition_B[row])]
    text = module.lm.decode(output.trajectories.ids(row)[:state])
    log_reward = output.log_reward_BS[row, state].item()
    source = "the policy's log q" if math.isfinite(log_reward) else "the log-reward"
    replayed = " (from the replay buffer)" if output.from_replay else ""
    return (
        f"condition {condition.key!r}, after {text!r}{replayed}: log R = {log_reward}, "
        f"φ = {output.phi_BS[row, state].item()}; {source} is not finite"
    )
