"""Steps that are not finite: skipped without a trace in the weights, counted; too many end the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gfn_runner.errors import UserError
from gfn_runner.module import GFlowNetModule

from .conftest import run

LINES = [
    "callbacks/replay=off",
    "callbacks.evaluation.every=0",
    "callbacks.evaluation.final=1",
    "callbacks.evaluation.baseline_shots=[]",
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


def records_of(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if "train/loss" in r]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_moves_nothing_and_is_counted(value, tmp_path, monkeypatch, caplog):
    # With moments from the steps before, a gradient of 0 would still move the weights.
    short = run(tmp_path / "short", *LINES, "trainer.max_steps=2", "optim.decay=false")
    keys = break_rewards(monkeypatch, {2}, value)
    folder = run(tmp_path / "run", *LINES, "trainer.max_steps=3", "optim.decay=false")
    for name, tensor in weights_of(short).items():
        assert torch.equal(tensor, weights_of(folder)[name]), name
    state = torch.load(folder / "checkpoints" / "step-0000003.ckpt", weights_only=True)
    moments = next(iter(state["optimizer_states"][0]["state"].values()))
    assert moments["step"] == 2 and moments["exp_avg"].isfinite().all()
    records = records_of(folder)
    assert [r["train/skipped"] for r in records] == [0, 0, 1]
    assert records[2]["train/loss"] is None and records[1]["train/loss"] > 0
    assert "optimizer step 3 is skipped: the loss is " in caplog.text
    assert f"condition {keys[0]!r}" in caplog.text and "the log-reward is not finite" in caplog.text


def test_training_goes_on_behind_a_bad_step(tmp_path, monkeypatch):
    break_rewards(monkeypatch, {1}, float("nan"))
    folder = run(tmp_path / "run", *LINES, "trainer.max_steps=3")
    records = records_of(folder)
    assert records[2]["train/loss"] > 0 and records[2]["train/grad_norm"] > 0
    assert json.loads((folder / "metrics.json").read_text())["train/skipped"] == 1


def test_many_bad_steps_in_a_row_end_the_run_and_name_the_conditions(tmp_path, monkeypatch):
    keys = break_rewards(monkeypatch, {0, 2, 3, 4}, float("nan"))
    lines = ["trainer.max_steps=9", "callbacks.health.most_non_finite=3"]
    lines += ["callbacks.checkpoint.every=1"]
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", *LINES, *lines)
    (problem,) = caught.value.problems
    assert problem.where == "optimizer step 5" and "3 steps in a row" in problem.what
    assert all(repr(key) in problem.what for key in keys[1:])
    assert "callbacks.health.most_non_finite" in problem.allowed
    # Step 5 has no checkpoint: it was never finished.
    assert max(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == "step-0000004.ckpt"


def test_strict_ends_at_the_first_and_lenient_never(tmp_path, monkeypatch):
    break_rewards(monkeypatch, set(range(99)), float("nan"))
    with pytest.raises(UserError) as caught:
        run(tmp_path / "a", *LINES, "trainer.max_steps=3", "callbacks/health=strict")
    assert caught.value.problems[0].where == "optimizer step 1"
    folder = run(tmp_path / "b", *LINES, "trainer.max_steps=7", "callbacks/health=lenient")
    assert records_of(folder)[-1]["train/skipped"] == 7
