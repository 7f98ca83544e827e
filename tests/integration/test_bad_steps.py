"""Steps that are not finite: skipped without a trace in the weights, counted; too many end the run."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gfn_runner.callbacks.non_finite_steps import SkipNonFiniteSteps
from gfn_runner.errors import UserError
from gfn_runner.tasks.base import GFlowNetModule
from tests.runs import metrics_of, run, steps_of
from tests.slow import mostly_slow

LINES = [
    "callbacks/replay_buffer=off",
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.final=1",
    "evaluation.baseline_shots=[]",
    "callbacks/report=off",
]


def break_rewards(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float) -> list[str]:
    """Log R of the first row becomes ``value`` at these steps (from 0). Returns the conditions' keys."""
    sound, keys = GFlowNetModule.log_reward, []

    def broken(self: GFlowNetModule, conditions: list, trajectories: Any) -> torch.Tensor:
        log_reward_BS = sound(self, conditions, trajectories)
        if self.global_step in steps:
            keys.append(conditions[0].key)
            log_reward_BS[0, int(trajectories.length_B[0])] = value
        return log_reward_BS

    monkeypatch.setattr(GFlowNetModule, "log_reward", broken)
    return keys


def state_at(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / f"checkpoints/step-{step:07d}.ckpt", weights_only=True)


@pytest.mark.parametrize("value", mostly_slow([math.nan, math.inf], [math.nan]))
def test_a_bad_step_moves_nothing_is_counted_and_training_goes_on(
    value, tmp_path, monkeypatch, caplog
):
    keys = break_rewards(monkeypatch, {2}, value)
    lines = [
        "trainer.max_steps=4",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.checkpoint.keep=9",
    ]
    folder = run(tmp_path / "run", *LINES, *lines, "scheduler.decay=false")
    before, state = (state_at(folder, step) for step in (2, 3))
    for name, tensor in before["state_dict"].items():
        assert torch.equal(tensor, state["state_dict"][name]), name
    # With moments from the steps before, a gradient of 0 would still move the weights.
    moments = next(iter(state["optimizer_states"][0]["state"].values()))
    assert moments["step"] == 2 and moments["exp_avg"].isfinite().all()
    records = steps_of(folder)
    assert [r["train/skipped"] for r in records] == [0, 0, 1, 1]
    assert records[2]["train/loss"] is None and records[1]["train/loss"] > 0
    assert records[3]["train/loss"] > 0 and records[3]["train/grad_norm"] > 0
    assert metrics_of(folder)["train/skipped"] == 1
    assert "optimizer step 3 is skipped: the loss is " in caplog.text
    assert f"condition {keys[0]!r}" in caplog.text and "the log-reward is not finite" in caplog.text


def test_many_bad_steps_in_a_row_end_the_run_and_name_the_conditions(tmp_path, monkeypatch):
    keys = break_rewards(monkeypatch, {0, 2, 3, 4}, float("nan"))
    lines = ["trainer.max_steps=9", "callbacks.non_finite_steps.max_in_a_row=3"]
    lines += ["callbacks.checkpoint.every_n_steps=1"]
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", *LINES, *lines)
    (problem,) = caught.value.problems
    assert problem.where == "optimizer step 5" and "3 steps in a row" in problem.what
    assert all(repr(key) in problem.what for key in keys[1:])
    assert "callbacks.non_finite_steps.max_in_a_row" in problem.allowed
    # Step 5 has no checkpoint: it was never finished.
    assert max(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == "step-0000004.ckpt"


def test_what_broke_the_policy_is_not_saved_and_a_lower_rate_goes_on_from_before(tmp_path, caplog):
    """What the error itself tells to do. The weights are finite then, and no logit is."""
    lines = [*LINES, "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=1"]
    folder = run(tmp_path / "run", *lines, "trainer.max_steps=2")
    lines += [f"resume={folder}", "trainer.max_steps=4"]
    with pytest.raises(UserError, match="logits are not finite") as caught:
        run(folder, *lines, "optimizer.lr=1e30")
    (problem,) = caught.value.problems
    assert problem.where == "lm" and "Question: " in problem.what
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-0000002.ckpt"]
    assert "no checkpoint at step 3: the policy's output at" in caplog.text
    run(folder, *lines, "optimizer.lr=1e-4")
    assert [r["step"] for r in steps_of(folder)] == [1, 2, 3, 4]


def test_strict_ends_at_the_first_and_lenient_never(tmp_path, monkeypatch):
    keys = break_rewards(monkeypatch, set(range(99)), float("nan"))
    with pytest.raises(UserError) as caught:
        run(tmp_path / "a", *LINES, "trainer.max_steps=3", "callbacks/non_finite_steps=strict")
    (problem,) = caught.value.problems
    assert problem.where == "optimizer step 1"
    assert f"condition {keys[0]!r}" in problem.what and "log-reward" in problem.what
    folder = run(
        tmp_path / "b", *LINES, "trainer.max_steps=7", "callbacks/non_finite_steps=lenient"
    )
    assert steps_of(folder)[-1]["train/skipped"] == 7


def test_a_learned_log_z_is_not_begun_at_what_is_not_finite(tmp_path, monkeypatch):
    """Else every later step of the condition would be skipped, and a checkpoint would carry it on."""
    lines = ["objective=tb", "sampling.n_conditions=6", "trainer.max_steps=4"]
    lines += ["task.data.n_rationales=4", "task.data.n_answers=4"]
    lines += ["callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep=4"]
    keys = break_rewards(monkeypatch, {0}, float("inf"))
    folder = run(tmp_path / "run", *LINES, *lines)
    records = steps_of(folder)
    assert len(keys) == 1 and [r["train/skipped"] for r in records] == [1, 1, 1, 1]
    assert all(r["train/loss"] is not None for r in records[1:])
    for step in (1, 4):
        state = state_at(folder, step)
        assert not state["state_dict"]["algorithm.log_z"].isinf().any()
    # The condition came again: with all conditions visited, none is left unbegun.
    assert state["state_dict"]["algorithm.log_z"].isfinite().all()


def test_rounds_of_em_count_a_bad_step_once():
    """Each E-step loads the checkpoint before it into the same callback."""
    skips = SkipNonFiniteSteps(max_in_a_row=3)
    skips.load_state_dict({"skipped": 1, "in_a_row": ["step 3: a"]})
    skips.load_state_dict({"skipped": 1, "in_a_row": ["step 3: a"]})
    assert skips.state_dict() == {"skipped": 1, "in_a_row": ["step 3: a"]}


def a_rank(loss: float, gradient: float, keys: str) -> Any:
    """What a rank's callback sees in a step."""
    module: Any = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(2))
    module.w.grad = torch.tensor([gradient, 0.0])
    module.last_output = SimpleNamespace(
        conditions=[SimpleNamespace(key=key) for key in keys],
        phi_BS=torch.zeros(1, 1),
        scores=SimpleNamespace(terminable_BS=torch.ones(1, 1, dtype=torch.bool)),
    )
    return torch.tensor(loss), module


@pytest.mark.parametrize(
    ("losses", "named", "unnamed"),
    [
        ((1.0, math.nan), "cd", "ab"),  # the average of gradients is NaN on both
        ((math.nan, 1.0), "ab", "cd"),
        ((math.inf, math.nan), "abcd", ""),
        ((1.0, 1.0), "abcd", ""),  # the gradient alone
    ],
)
def test_of_several_ranks_the_conditions_of_a_bad_loss_are_named(
    losses, named, unnamed, monkeypatch, caplog
):
    gathered: list[Any] = []
    ranks = [a_rank(loss, math.nan, keys) for loss, keys in zip(losses, ("ab", "cd"), strict=True)]
    monkeypatch.setattr(
        "gfn_runner.callbacks.non_finite_steps.all_gather",
        lambda own: gathered.append(own) or gathered,
    )
    # The first rank comes last, when both have gathered.
    for loss, module in reversed(ranks):
        skips = SkipNonFiniteSteps()
        skips.on_before_backward(None, module, loss)
        skips.on_before_optimizer_step(SimpleNamespace(global_step=4), module, None)
        assert module.w.grad is None
    said = caplog.records[-1].getMessage()
    assert said.startswith("optimizer step 5 is skipped: ")
    assert all(repr(key) in said for key in named) and not any(repr(k) in said for k in unnamed)
