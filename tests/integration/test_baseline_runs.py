"""Every baseline from the command line to its table, in the folder layout of every other run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from safetensors.torch import load_file

from gfn_runner.app import main, train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.errors import UserError

from .conftest import run

FEW = ["callbacks.evaluation.votes=3", "callbacks.evaluation.baseline_shots=[]"]
RUNS = {
    "prompting": (["baseline.shots=[0,2]"], ["base_0_shot", "base_2_shot"]),
    "decoding": (
        ["baseline.decoders=[greedy,beam,nucleus]", "baseline.compute=2"],
        ["greedy", "beam", "beam_x2", "nucleus", "nucleus_x2"],
    ),
    "resampling": (
        ["baseline.draws=[1,4]"],
        ["best_of_1", "best_of_4", "resampled_1", "resampled_4"],
    ),
}
# What every run leaves, whatever it did.
COMMON = {"config.yaml", "overrides.yaml", "environment.json", "metrics.json", "samples.md"}


@pytest.mark.parametrize("name", RUNS)
def test_a_baseline_that_trains_nothing(name, tmp_path, capsys):
    more, rows = RUNS[name]
    folder = run(tmp_path / "run", f"baseline={name}", *FEW, *more)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["run/steps"] == 0 and not any(key.startswith("final/") for key in metrics)
    for row in rows:
        assert f"{row}/vote_accuracy/3_operands" in metrics
        assert (folder / f"samples_{row}.jsonl").is_file()
    assert {path.name for path in folder.iterdir()} >= COMMON
    assert not (folder / "adapter").exists() and not (folder / "samples.jsonl").exists()
    assert "arithmetic" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sft", "ppo", "grpo"])
def test_a_baseline_that_trains(name, tmp_path, capsys):
    folder = run(tmp_path / "run", f"baseline={name}", *FEW, "trainer.max_steps=3")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["run/steps"] == 3 and "final/vote_accuracy/3_operands" in metrics
    assert {path.name for path in folder.iterdir()} >= COMMON | {"adapter", "samples.jsonl"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    assert len(losses) == 3 and all(
        map(torch.tensor(losses).isfinite().tolist().__getitem__, range(3))
    )
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)
    assert {"sft": "SFT", "ppo": "PPO", "grpo": "GRPO"}[name] in capsys.readouterr().out


def test_a_baseline_goes_on_from_its_checkpoint(tmp_path):
    """The value head and its optimizer are in the checkpoint."""
    folder = tmp_path / "run"
    lines = ["baseline=ppo", *FEW, "callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=1"]
    run(folder, *lines, "trainer.max_steps=2")
    (checkpoint,) = folder.glob("checkpoints/*.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state["value.weight"].abs().max() > 0
    run(folder, *lines, "trainer.max_steps=4", f"resume={folder}")
    assert json.loads((folder / "metrics.json").read_text())["run/steps"] == 4


def test_answers_are_learnt_and_asked_for_at_once(tmp_path):
    lines = ["experiment=tiny/smoke", "task=subjectivity", "baseline=sft", "trainer.max_steps=2"]
    lines += [
        "callbacks.progress.show=none",
        "callbacks.evaluation.final=4",
        "trainer.threads=1",
        *FEW,
    ]
    folder = tmp_path / "run"
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(lines)
    train_and_evaluate(config, folder, lines)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["final/vote_accuracy/test"] == metrics["final/single_accuracy/test"]


def test_a_policys_samples_are_learnt_from(finished, tmp_path):
    lines = ["baseline=sft", f"baseline.samples_of={finished}", "baseline.n_samples=2", *FEW]
    folder = run(tmp_path / "run", *lines, "trainer.max_steps=2")
    assert json.loads((folder / "metrics.json").read_text())["run/steps"] == 2


@pytest.mark.parametrize(
    ("lines", "where", "text"),
    [
        (["baseline=exact"], "baseline", "cannot list the strings"),
        (["baseline=decoding", "task=arithmetic_tool"], "baseline", "with a tool"),
        (["baseline=sft", "task=continuation"], "baseline", "knows no string to learn from"),
        (["baseline=prompting", "task=continuation"], "baseline.shots", "no worked examples"),
        (["baseline=ppo", "em.rounds=1"], "em.rounds", "with PPO"),
        (["baseline=ppo", "callbacks/replay=quarter"], "callbacks.replay.probability", "no buffer"),
        (["baseline=grpo", "baseline.clip=2"], "baseline.clip", "less than 1"),
        (["baseline=prompting", "trainer.devices=2"], "trainer.devices", "trains nothing"),
        (["baseline=sft", "baseline.samples_of=nowhere"], "baseline.samples_of", "no adapter"),
        (["baseline.epochs=3"], "baseline._target_", "given None"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(lines, where, text):
    with (
        initialize_config_dir(version_base=None, config_dir=str(CONF)),
        pytest.raises(UserError) as e,
    ):
        check_lines([line if "epochs" not in line else f"++{line}" for line in lines])
    found = {problem.where: f"{problem.what} {problem.allowed}" for problem in e.value.problems}
    assert where in found and text in found[where]


def test_an_unknown_baseline_is_answered_with_those_that_exist(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["baseline=pppo"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "did you mean baseline=ppo?" in shown and "resampling" in shown


def test_no_policy_comes_out_of_a_run_that_trains_none(tmp_path, capsys):
    folder = run(tmp_path / "run", "baseline=prompting", *FEW, "baseline.shots=[0]")
    with pytest.raises(SystemExit):
        main(["mode=sample", f"run={folder}", "prompt=Question: 1 + 1 = ? Answer:"])
    assert "trained no policy" in capsys.readouterr().err
    assert Path(folder / "metrics.json").is_file()
