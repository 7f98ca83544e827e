"""Every task that is chosen by name alone runs from the command line to its table, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir

from gfn_runner.app import main, train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.config.tokenizer_checks import check_texts
from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from gfn_runner.lm.loading import load
from gfn_runner.lm.settings import LMSettings

FEW = {
    "random_number": ["callbacks.evaluation.singles=300"],
    "continuation": ["task.data.n_test=2", "callbacks.evaluation.resampled=30"],
    "contrastive": ["callbacks.evaluation.baseline_temperatures=[0.7]"],
    "translation": ["task.data.n_test=3"],
    "constrained": ["task.data.n_test=6"],
    "posterior": [],
    "infilling": ["task.data.n_test=3", "task.data.n_train=20", "task.demonstrate=true"],
}
COMMON = [
    "experiment=tiny/smoke",
    "callbacks.progress.show=none",
    "callbacks.evaluation.singles=4",
    "trainer.threads=1",
]


def run(folder: Path, task: str, *more: str) -> dict[str, float]:
    lines = [f"task={task}", *COMMON, *FEW[task], *more]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(lines)
    train_and_evaluate(config, folder, lines)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", FEW)
def test_a_task_runs_to_its_table(task, tmp_path, capsys):
    folder = tmp_path / "run"
    metrics = run(folder, task)
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        headline = check_lines([f"task={task}"]).task.headline
    shown = [name for name in headline if any(k.startswith(f"final/{name}/") for k in metrics)]
    assert shown, f"none of {headline} was measured"
    for name in shown:
        mine = {k.removeprefix("final/") for k in metrics if k.startswith(f"final/{name}/")}
        base = {k.removeprefix("base_0_shot/") for k in metrics if k.startswith("base_0_shot/")}
        assert mine <= base, "the base model stands beside the policy in every measure"
    printed = capsys.readouterr().out
    assert "base model, 0-shot" in printed and "this run" in printed
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"loss_and_reward", "phi_spread"} <= drawn
    assert (folder / "samples.md").read_text(encoding="utf-8").startswith("| prompt | this run |")


def test_what_was_asked_for_stands_in_rows_of_its_own(tmp_path):
    folder = tmp_path / "run"
    metrics = run(folder, "continuation")
    assert "resampled/log_likelihood/news" in metrics and "final/diversity/stories" in metrics
    assert (folder / "samples_resampled.jsonl").is_file()
    assert (folder / "figures" / "likelihood_diversity.png").is_file()
    # φ of resampled strings is constant by definition: it says nothing of them.
    assert "resampled/phi_spread/news" not in metrics and "resampled/ess/news" in metrics


def test_a_policy_outlives_its_data(tmp_path, caplog, capsys):
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("Tom had a red ball.\nAnna went to the park.\nIt was late.\n")
    run(folder, "continuation", f"task.data.prompts={prompts}", "task.data.n_test=1")
    prompts.unlink()
    samples = Policy.load(folder).sample("Tom had a red ball.", n=2)
    assert "prompts.txt" in caplog.text
    assert all(s.log_reward is not None for s in samples)
    main(["mode=sample", f"run={folder}", "prompt=Tom had a red ball.", "n=2"])
    assert "log q" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["mode=evaluate", f"run={folder}"])
    assert "prompts.txt" in capsys.readouterr().err


def test_a_trained_policy_knows_the_posterior_of_a_new_prompt(tmp_path):
    folder = tmp_path / "run"
    run(folder, "continuation")
    samples = Policy.load(folder).sample("Tom wanted a kite. But he had no money.", n=3)
    assert len(samples) == 3 and all(s.log_reward is not None for s in samples)


def test_every_number_is_known_before_the_first_step(tmp_path):
    """Also those that the base model never writes in a whole run."""
    folder = tmp_path / "run"
    run(folder, "random_number")
    (file,) = (folder / "checkpoints").glob("*.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    (stored,) = [v for k, v in checkpoint["callbacks"].items() if "Replay" in k]
    (rows,) = stored["buffer"].values()
    lm = load(LMSettings(), adapter=False)
    found = {lm.decode(row["tokens"]) for row in rows}
    assert {f" {number}" for number in range(101)} <= found


def test_numbers_of_more_tokens_than_may_be_written_are_refused():
    lines = ["task=random_number", "task.high=100000", "task.low=99000", "task.max_len=2"]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(lines)
    with pytest.raises(UserError) as caught:
        check_texts(config)
    text = str(caught.value)
    assert "task.max_len" in text and "1001 of the 1001 strings" in text and "at least" in text


def test_random_numbers_are_drawn_against_their_target(tmp_path):
    folder = tmp_path / "run"
    metrics = run(folder, "random_number")
    assert metrics["final/n_samples/numbers"] == 300
    assert 0 <= metrics["final/exact_tv/numbers"] <= 1
    assert (folder / "figures" / "histogram.png").is_file()
