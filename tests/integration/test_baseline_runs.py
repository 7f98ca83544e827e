"""Every baseline from the command line to its table, in the folder layout of every other run."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.errors import UserError
from tests.runs import (
    TINY,
    composed,
    exit_code,
    metrics_of,
    newest_state,
    run,
    steps_of,
    weights_of,
)

FEW = ["evaluation.votes=3", "evaluation.baseline_shots=[]"]
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
    metrics = metrics_of(folder)
    assert metrics["run/steps"] == 0 and not any(key.startswith("final/") for key in metrics)
    for row in rows:
        assert f"{row}/vote_accuracy/3_operands" in metrics
        assert (folder / f"samples_{row}.jsonl").is_file()
    assert {path.name for path in folder.iterdir()} >= COMMON
    assert not (folder / "adapter").exists() and not (folder / "samples.jsonl").exists()
    page = (folder / "report.html").read_text()
    assert "No curves: the run trains nothing." in page and "http-equiv" not in page
    assert "arithmetic" in capsys.readouterr().out
    if name == "prompting":
        assert exit_code("mode=sample", f"run={folder}", "prompt=Question: 1 + 1 = ? Answer:") == 2
        assert "trained no policy" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sft", "ppo", "grpo"])
def test_a_baseline_that_trains(name, tmp_path, capsys):
    lines = [f"baseline={name}", *FEW, "trainer.max_steps=2", "callbacks/report=off"]
    folder = run(tmp_path / "run", *lines)
    metrics = metrics_of(folder)
    assert metrics["run/steps"] == 2 and "final/vote_accuracy/3_operands" in metrics
    assert {path.name for path in folder.iterdir()} >= COMMON | {"adapter", "samples.jsonl"}
    losses = [record["train/loss"] for record in steps_of(folder)]
    assert len(losses) == 2 and torch.tensor(losses).isfinite().all()
    trained = [value for key, value in weights_of(folder).items() if "lora_B" in key]
    if name == "ppo":
        trained.append(newest_state(folder)["state_dict"]["algorithm.value.weight"])
        assert trained[-1].abs().max() > 0
    assert any(value.abs().max() > 0 for value in trained)
    assert name.upper() in capsys.readouterr().out


def test_answers_are_learnt_and_asked_for_at_once(tmp_path):
    lines = [
        "task=subjectivity",
        "baseline=sft",
        "trainer.max_steps=2",
        "callbacks/report=off",
        *FEW,
    ]
    folder = run(tmp_path / "run", *lines, "evaluation.final=4", base=TINY)
    metrics = metrics_of(folder)
    assert metrics["final/vote_accuracy/test"] == metrics["final/single_accuracy/test"]


def test_a_policys_samples_are_learnt_from(finished, tmp_path):
    lines = ["baseline=sft", f"baseline.samples_of={finished}", "baseline.n_samples=2", *FEW]
    folder = run(tmp_path / "run", *lines, "trainer.max_steps=2")
    assert metrics_of(folder)["run/steps"] == 2


@pytest.mark.parametrize(
    ("lines", "where", "text"),
    [
        (["baseline=exact"], "baseline", "cannot list the strings"),
        (["baseline=decoding", "task=arithmetic_tool"], "baseline", "with a tool"),
        (["baseline=sft", "task=continuation"], "baseline", "has no strings to learn from"),
        (["baseline=prompting", "task=continuation"], "baseline.shots", "no worked examples"),
        (["baseline=ppo", "em.rounds=1"], "em.rounds", "with PPO"),
        (
            ["baseline=ppo", "callbacks/replay_buffer=quarter"],
            "callbacks.replay_buffer.probability",
            "no buffer",
        ),
        (["baseline=grpo", "baseline.clip=2"], "baseline.clip", "less than 1"),
        (["baseline=prompting", "trainer.devices=2"], "trainer.devices", "trains nothing"),
        (["baseline=sft", "baseline.samples_of=nowhere"], "baseline.samples_of", "no adapter"),
        (["baseline.epochs=3"], "baseline._target_", "missing"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(lines, where, text):
    with pytest.raises(UserError) as e:
        composed(*(line if "epochs" not in line else f"++{line}" for line in lines))
    found = {problem.where: f"{problem.what} {problem.allowed}" for problem in e.value.problems}
    assert where in found and text in found[where]
