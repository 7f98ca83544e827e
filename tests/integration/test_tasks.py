"""Every task that is chosen by name alone runs to its table, in a few steps."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gfn_runner.config.tokenizer_checks import check_texts
from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.tasks.user_posterior import EXAMPLE
from tests import runs
from tests.runs import (
    ROOT,
    TINY,
    composed,
    lines_of,
    made_once,
    metrics_of,
    newest_state,
    weights_of,
)

COMMON = (
    *TINY,
    "evaluation.singles=4",
    "trainer.max_steps=2",
    "callbacks/report=off",
)
DRAWS = "evaluation.posterior_draws=8"
FEW = {
    "random_number": ["evaluation.singles=300", "lm.name=embedded"],  # which writes numbers
    "continuation": ["task.data.n_test=2", "evaluation.resampled=30"],
    "contrastive": ["evaluation.baseline_temperatures=[0.7]"],
    "translation": ["task.data.n_test=3"],
    "constrained": ["task.data.n_train=6", "task.data.n_test=2"],
    "posterior": [DRAWS],
    "infilling": ["task.data.n_test=3", "task.data.n_train=20", "task.demonstrate=true", DRAWS],
}
DRAWN = {"random_number": "histogram", "continuation": "likelihood_diversity"}


def run(folder: Path, task: str, *more: str) -> Path:
    return runs.run(folder, f"task={task}", *FEW[task], *more, base=COMMON, figures=task in DRAWN)


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """A task's run, made once, with what it has printed beside it."""

    def make(task: str, folder: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run(folder, task)
        (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")

    return lambda task: made_once(tmp_path_factory, task, lambda folder: make(task, folder))


@pytest.mark.parametrize("task", FEW)
def test_a_task_runs_to_its_table(task, run_of):
    folder = run_of(task)
    metrics = metrics_of(folder)
    headline = composed(f"task={task}").task.headline
    shown = [name for name in headline if any(k.startswith(f"final/{name}/") for k in metrics)]
    assert shown, f"none of {headline} was measured"
    for name in shown:
        own = {k.removeprefix("final/") for k in metrics if k.startswith(f"final/{name}/")}
        base = {k.removeprefix("base_0_shot/") for k in metrics if k.startswith("base_0_shot/")}
        assert own <= base, "the base model has every measure of the policy"
    printed = (folder / "printed.txt").read_text(encoding="utf-8")
    assert "base model, 0-shot" in printed and "this run" in printed
    if task in DRAWN:
        drawn = {path.stem for path in (folder / "figures").glob("*.png")}
        assert {"loss_and_reward", "phi_spread", DRAWN[task]} <= drawn
    assert (folder / "samples.md").read_text(encoding="utf-8").startswith("| prompt | this run |")


def test_what_was_asked_for_stands_in_rows_of_its_own(run_of):
    folder = run_of("continuation")
    metrics = metrics_of(folder)
    assert "resampled/log_likelihood/news" in metrics and "final/diversity/stories" in metrics
    assert (folder / "samples_resampled.jsonl").is_file()
    # φ of resampled strings is constant by definition: it says nothing of them.
    assert "resampled/phi_spread/news" not in metrics and "resampled/ess/news" in metrics


def test_a_trained_policy_knows_the_posterior_of_a_new_prompt(run_of):
    policy = Policy.load(run_of("continuation"))
    samples = policy.sample("Tom wanted a kite. But he had no money.", n=3)
    assert len(samples) == 3 and all(s.log_reward is not None for s in samples)


def test_a_policy_outlives_its_data(tmp_path, caplog, capsys):
    prompts, folder = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("Tom had a red ball.\nAnna went to the park.\nIt was late.\n")
    lines = [f"task.data.prompts={prompts}", "task.data.n_test=1"]
    runs.run(folder, "task=continuation", *lines, base=COMMON)
    prompts.unlink()
    samples = Policy.load(folder).sample("Tom had a red ball.", n=2)
    assert "prompts.txt" in caplog.text
    assert all(s.log_reward is not None for s in samples)
    assert runs.exit_code("mode=sample", f"run={folder}", "prompt=Tom had a red ball.", "n=2") == 0
    assert "log q" in capsys.readouterr().out
    assert runs.exit_code("mode=evaluate", f"run={folder}") == 2
    assert "prompts.txt" in capsys.readouterr().err


@torch.no_grad()
def test_plain_peft_reads_the_adapter_and_gets_the_same_log_probabilities(run_of):
    folder = run_of("random_number")
    (record,) = lines_of(folder / "samples.jsonl")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    policy = PeftModel.from_pretrained(base, folder / "adapter").eval()
    prompt = tokenizer(record["prompt"])["input_ids"]
    known = {f" {number}" for number in range(101)}
    drawn = [(t, q) for t, q in zip(record["singles"], record["log_pf"], strict=True) if t in known]
    assert len(drawn) > 20
    for text, log_pf in drawn[:20]:
        string = tokenizer(text + ".", add_special_tokens=False)["input_ids"]
        logits_TV = policy(torch.tensor([prompt + string])).logits[0]
        # Special tokens are never written: the rest is renormalised.
        logits_TV[:, tokenizer.all_special_ids] = float("-inf")
        log_probs_TV = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1]
        found = log_probs_TV.gather(1, torch.tensor(string)[:, None]).sum().item()
        assert found == pytest.approx(log_pf, abs=2e-3)
    trained = [t for name, t in weights_of(folder).items() if "lora_B" in name]
    assert any(t.abs().max() > 0 for t in trained)


def test_every_number_is_known_before_the_first_step(run_of):
    """Also those that the base model never writes in a whole run."""
    state = newest_state(run_of("random_number"))["callbacks"]["ReplayBufferCallback"]["buffers"][0]
    lm = load(LMSettings(), adapter=False)
    strings = state["tokens"].split(state["length_B"].tolist())
    found = {lm.decode(string.tolist()) for string in strings}
    assert {f" {number}" for number in range(101)} <= found


def test_numbers_of_more_tokens_than_may_be_written_are_refused():
    lines = ["task=random_number", "task.high=100000", "task.low=99000", "task.max_len=2"]
    with pytest.raises(UserError) as caught:
        check_texts(composed(*lines))
    text = str(caught.value)
    assert "task.max_len" in text and "1001 of the 1001 strings" in text and "at least" in text


def test_words_with_the_terminator_in_them_are_refused_before_weights_load(tmp_path, monkeypatch):
    file = tmp_path / "own.jsonl"
    constraint = {"words": ["U.S.", "dog"]}
    file.write_text(json.dumps({"prompt": "The dog", "constraint": constraint}))
    monkeypatch.setattr("gfn_runner.train.load", lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", "posterior", f"task.data.train={file}")
    (problem,) = caught.value.problems
    assert problem.where == f"{file}, line 1, field constraint.words[0]"
    assert "'U.S.'" in problem.what


def test_the_document_shows_the_example():
    text = (ROOT / "docs" / "own_posterior.md").read_text("utf-8")
    for example in (EXAMPLE, EXAMPLE.with_name("chat.jsonl")):
        assert example.read_text(encoding="utf-8") in text
