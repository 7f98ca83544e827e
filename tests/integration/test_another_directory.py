"""A run with relative paths, made in an ASCII locale, used and resumed from another directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftConfig
from safetensors.torch import load_file, save_file

from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from gfn_runner.run.resume import start_of
from tests.runs import MODEL, ROOT, TINY, jobs, run_process

PROMPT = "Sentence: The old farmer"
LINES = (
    "task=posterior",
    "task.data.train=own.jsonl",
    *TINY,
    "lm.name=mymodel",
    "callbacks.progress.show=lines",
    "callbacks.progress.every_n_steps=1",
    "trainer.max_steps=1",
    "evaluation.baseline_shots=[]",
    "callbacks/report=off",
    "logger=local",
    "hydra.run.dir=run",
    "hydra.job.chdir=true",
)
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two directories: in one a run and its model, in the other another model of that name."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for place in (here, there):
        shutil.copytree(MODEL, place / "mymodel")
    weights = there / "mymodel" / "model.safetensors"
    save_file(
        {name: 0.5 * tensor for name, tensor in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    record = {"prompt": PROMPT, "terms": [{"context": PROMPT}]}
    (here / "own.jsonl").write_text(json.dumps(record))
    done = run_process(*LINES, cwd=here, env={"PYTHONPATH": str(ROOT), **ASCII}, encoding="ascii")
    return here, there, done


def test_it_trains_in_its_own_folder_and_prints_ascii(trained):
    here, _, done = trained
    assert done.returncode == 0, done.stderr
    assert "\\u03c6 spread" in done.stdout
    assert "Logging error" not in done.stderr
    saved = yaml.safe_load((here / "run/config.yaml").read_text("utf-8"))
    assert saved["lm"]["name"] == str(here / "mymodel")
    assert saved["task"]["data"]["train"] == str(here / "own.jsonl")
    lines = yaml.safe_load((here / "run/overrides.yaml").read_text("utf-8"))
    assert f"lm.name='{here / 'mymodel'}'" in lines


def test_plain_peft_finds_the_base_model(trained):
    here, _, _ = trained
    config = PeftConfig.from_pretrained(str(here / "run/adapter"))
    assert config.base_model_name_or_path == str(here / "mymodel")


@torch.no_grad()
def test_it_is_the_same_policy_from_another_directory(trained, monkeypatch):
    here, there, _ = trained
    monkeypatch.chdir(here)
    samples = Policy.load("run", device="cpu").sample(PROMPT, n=4, seed=1)
    monkeypatch.chdir(there)
    run = os.path.relpath(here / "run", there)
    (used,) = jobs(f"run={run}", "mode=sample", f"prompt={PROMPT}")
    again = Policy.of(used, Path(run), device="cpu").sample(PROMPT, n=4, seed=1)
    assert [s.text for s in again] == [s.text for s in samples]
    for before, now in zip(samples, again, strict=True):
        # The same computation; the halved model is off by nats.
        assert now.log_reward == pytest.approx(before.log_reward, abs=1e-4)


def test_it_is_resumed_from_another_directory(trained, monkeypatch):
    here, there, _ = trained
    monkeypatch.chdir(there)
    run = os.path.relpath(here / "run", there)
    (config,) = jobs(f"resume={run}", "trainer.max_steps=2")
    assert config.lm.name == str(here / "mymodel")
    checkpoint = start_of(config, Path(run)).checkpoint
    assert checkpoint is not None and checkpoint.parent == Path(run) / "checkpoints"
    # The whole place was moved, and is named anew.
    saved, moved = here / "run/config.yaml", there / "moved"
    shutil.copytree(MODEL, moved / "mymodel")
    text = saved.read_text("utf-8")
    saved.write_text(text.replace(str(here / "mymodel"), "/gone/mymodel"), "utf-8")
    (config,) = jobs(f"resume={run}", "trainer.max_steps=2", f"lm.name={moved / 'mymodel'}")
    assert start_of(config, Path(run)).checkpoint is not None
    saved.write_text(text.replace(str(here / "mymodel"), "/gone/other"), "utf-8")
    with pytest.raises(UserError, match=r"lm\.name"):
        start_of(config, Path(run))
