"""Runs of the tasks posterior and constrained, of three steps; and demands that the tokenizer refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import initialize_config_dir

from gfn_runner.app import train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.errors import UserError
from gfn_runner.tasks.user_posterior import EXAMPLE

SMALL = [
    "experiment=tiny/smoke",
    "callbacks.progress.show=none",
    "callbacks.evaluation.baseline_shots=[0]",
    "callbacks.evaluation.final=2",
    "callbacks.evaluation.singles=2",
    "trainer.max_steps=2",
    "trainer.threads=1",
]


def run(folder: Path, *lines: str) -> dict[str, float]:
    overrides = [*SMALL, *lines]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(overrides)
    train_and_evaluate(config, folder, overrides)
    return json.loads((folder / "metrics.json").read_text())


def test_the_example_of_the_package_runs(tmp_path):
    metrics = run(tmp_path / "run", "task=posterior")
    assert metrics["final/log_reward/seen"] < 0 and metrics["final/log_pf/seen"] < 0
    assert 0 < metrics["final/unique/seen"] <= 1
    assert "base_0_shot/log_z_bound/seen" in metrics


def test_constrained_generation_runs(tmp_path):
    metrics = run(tmp_path / "run", "task=constrained", "task.data.n_train=6", "task.data.n_test=2")
    for prefix in ("final", "base_0_shot"):
        shares = [v for k, v in metrics.items() if k.startswith(f"{prefix}/satisfied_share/")]
        assert shares and all(0 <= share <= 1 for share in shares)


def test_words_that_the_tokenizer_cannot_write_are_refused_before_weights_load(
    tmp_path, monkeypatch
):
    file = tmp_path / "own.jsonl"
    constraint = {"words": ["U.S.", "dog"]}
    file.write_text(json.dumps({"prompt": "The dog", "constraint": constraint}))
    monkeypatch.setattr("gfn_runner.build.load", lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", "task=posterior", f"task.data.train={file}")
    (problem,) = caught.value.problems
    assert problem.where == f"{file}, line 1, field constraint"
    assert "'U.S.' cannot be written" in problem.what


def test_the_document_shows_the_example():
    text = (Path(__file__).resolve().parents[2] / "docs" / "own_posterior.md").read_text("utf-8")
    for example in (EXAMPLE, EXAMPLE.with_name("chat.jsonl")):
        assert example.read_text(encoding="utf-8") in text
