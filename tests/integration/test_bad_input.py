"""Input that only shows when the model's files are read: one screen, before weights load."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from gfn_runner.cli.compose import CONF
from gfn_runner.errors import UserError
from gfn_runner.lm.settings import EMBEDDED_FOLDER
from gfn_runner.report.runs import read_runs

from ..tiny_models import save_model_that_ignores_padding
from .conftest import SMALL, run


def model_copy(tmp_path, *, without: str):
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    for path in folder.glob(without):
        path.unlink()
    return folder


def refused(tmp_path, *lines: str) -> str:
    folder = tmp_path / "run"
    with pytest.raises(UserError) as caught:
        run(folder, *lines)
    assert not (folder / "metrics.json").exists() and not (folder / "checkpoints").exists()
    assert len(str(caught.value).splitlines()) < 24
    return str(caught.value)


def test_a_model_folder_without_a_tokenizer(tmp_path):
    folder = model_copy(tmp_path, without="token*")
    assert "has no tokenizer" in refused(tmp_path, f"lm.name={folder}")


def test_a_prompt_longer_than_the_context_is_found_before_weights_load(tmp_path, monkeypatch):
    monkeypatch.setattr("gfn_runner.build.load", lambda *_, **__: pytest.fail("weights load"))
    lines = ("task.data.n_rationales=60", "callbacks.evaluation.baseline_shots=[40]")
    text = refused(tmp_path, *lines)
    assert "40-shot prompt" in text and "context of 512" in text


def test_a_terminator_that_is_not_one_token(tmp_path):
    text = refused(tmp_path, 'task.terminator="the end"')
    assert "task.terminator" in text and "exactly one token" in text


def test_missing_weights(tmp_path):
    folder = model_copy(tmp_path, without="model.safetensors")
    assert "lm.name" in refused(tmp_path, f"lm.name={folder}")


def test_lora_targets_that_do_not_exist(tmp_path):
    text = refused(tmp_path, "lm.lora.targets=[c_attn]")
    assert "lm.lora.targets" in text and "q_proj" in text


def test_a_loss_that_is_not_finite_names_step_and_condition(tmp_path, monkeypatch):
    from gfn_runner.module import GFlowNetModule

    original = GFlowNetModule.log_reward

    def poisoned(self, conditions, trajectories):
        log_reward_BS = original(self, conditions, trajectories)
        return torch.where(log_reward_BS.isfinite(), float("nan"), log_reward_BS)

    monkeypatch.setattr(GFlowNetModule, "log_reward", poisoned)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", "callbacks.replay.probability=0", "callbacks/health=strict")
    text = str(caught.value)
    assert "optimizer step 1" in text and "condition '" in text and "log-reward" in text


def test_another_architecture_in_a_local_folder(tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = (f"lm.name={tmp_path / 'model'}", "callbacks.evaluation.baseline_shots=[]")
    folder = run(tmp_path / "run", *lines)
    assert (folder / "metrics.json").is_file()


def test_a_run_that_fails_says_why_in_its_log_and_a_report_repeats_it(tmp_path, finished):
    """Whoever looks through the folders of a sweep has no terminal of it."""
    model = tmp_path / "model"
    save_model_that_ignores_padding(model)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gfn_runner", *SMALL, f"lm.name={model}"]
    result = subprocess.run(
        [*command, f"hydra.run.dir={folder}"], capture_output=True, text=True, cwd=CONF.parent
    )
    assert result.returncode == 2 and "lm.name" in result.stderr
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "ERROR" in log and "the run has failed: lm.name" in log
    failed, _ = read_runs([folder, finished])
    assert failed.status == "failed" and any("lm.name" in line for line in failed.log)
