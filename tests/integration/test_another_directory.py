"""A run with relative paths, made in an ASCII locale, used and resumed from another directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftConfig
from safetensors.torch import load_file, save_file

import gfn_runner
from gfn_runner.cli.compose import checked
from gfn_runner.cli.resume import start_of
from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from gfn_runner.lm.settings import EMBEDDED_FOLDER

PROMPT = "Sentence: The old farmer"
LINES = [
    "task=posterior",
    "task.data.train=own.jsonl",
    "lm.name=mymodel",
    "experiment=tiny/smoke",
    "trainer.max_steps=2",
    "trainer.threads=1",
    "callbacks.evaluation.baseline_shots=[]",
    "callbacks/report=off",
    "logger.wandb=off",
    "hydra.run.dir=run",
    "hydra.job.chdir=true",
]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two directories: in one a run and its model, in the other another model of that name."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for place in (here, there):
        shutil.copytree(EMBEDDED_FOLDER, place / "mymodel")
    weights = there / "mymodel" / "model.safetensors"
    save_file(
        {name: 0.5 * tensor for name, tensor in load_file(weights).items()},
        weights,
        metadata={"format": "pt"},
    )
    record = {"prompt": PROMPT, "terms": [{"context": PROMPT}]}
    (here / "own.jsonl").write_text(json.dumps(record))
    known = {**os.environ, "PYTHONPATH": str(Path(gfn_runner.__file__).parent.parent)}
    command = [sys.executable, "-m", "gfn_runner", *LINES]
    done = subprocess.run(command, cwd=here, env=known | ASCII, capture_output=True, check=False)
    return here, there, done


def test_it_trains_in_its_own_folder_and_prints_ascii(trained):
    here, _, done = trained
    assert done.returncode == 0, done.stderr.decode("ascii")
    assert "phi spread" in done.stdout.decode("ascii")
    assert "Logging error" not in done.stderr.decode("ascii")
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
    (used,) = checked([f"run={run}", "mode=sample", f"prompt={PROMPT}"]).jobs
    again = Policy.of(used, Path(run), device="cpu").sample(PROMPT, n=4, seed=1)
    assert [s.text for s in again] == [s.text for s in samples]
    for before, now in zip(samples, again, strict=True):
        # The same computation; the halved model is off by nats.
        assert now.log_reward == pytest.approx(before.log_reward, abs=1e-4)


def test_it_is_resumed_from_another_directory(trained, monkeypatch):
    here, there, _ = trained
    monkeypatch.chdir(there)
    run = os.path.relpath(here / "run", there)
    prepared = checked([f"resume={run}", "trainer.max_steps=3"])
    assert prepared.jobs[0].lm.name == str(here / "mymodel")
    checkpoint = start_of(prepared.jobs[0], Path(run)).checkpoint
    assert checkpoint is not None and checkpoint.parent == Path(run) / "checkpoints"
    # The whole place was moved, and is named anew.
    saved, moved = here / "run/config.yaml", there / "moved"
    shutil.copytree(EMBEDDED_FOLDER, moved / "mymodel")
    text = saved.read_text("utf-8")
    saved.write_text(text.replace(str(here / "mymodel"), "/gone/mymodel"), "utf-8")
    prepared = checked([f"resume={run}", "trainer.max_steps=3", f"lm.name={moved / 'mymodel'}"])
    assert start_of(prepared.jobs[0], Path(run)).checkpoint is not None
    saved.write_text(text.replace(str(here / "mymodel"), "/gone/other"), "utf-8")
    with pytest.raises(UserError, match=r"lm\.name"):
        start_of(prepared.jobs[0], Path(run))
    saved.write_text(text, "utf-8")
    # As runs from before had them, in their own directory.
    monkeypatch.chdir(here)
    saved.write_text(text.replace(f"{here}/", ""), "utf-8")
    prepared = checked(["resume=run", "trainer.max_steps=3"])
    assert start_of(prepared.jobs[0], Path("run")).checkpoint is not None
