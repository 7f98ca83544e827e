"""Runs on real weights: a listed posterior, a resumed run, an adapter read by plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gfn_runner.inference import Policy
from tests.copied_runs import MOMENTS, assert_same, copied
from tests.runs import metrics_of, newest_state, run

pytestmark = pytest.mark.real
# 20 strings, all of which are known: from " 0" to " 19".
COMMON = (
    "experiment=smollm2/random_number",
    "task.high=19",
    "task.max_len=3",
    "task.eval_max_len=3",
    "callbacks.replay_buffer.capacity=20",
    "lm.device=cpu",
    "lm.dtype=float32",
    "callbacks.progress.show=none",
    "callbacks.evaluation.every_n_steps=0",
    "callbacks/report=off",
    "logger=local",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run of 40 steps of 64 samples: two minutes on two cores."""
    folder = tmp_path_factory.mktemp("listed") / "run"
    steps = ["trainer.max_steps=40", "sampling.n_samples=64", "scheduler.warmup_steps=8"]
    run(folder, *steps, "evaluation.singles=200", base=COMMON)
    return folder, metrics_of(folder)


def test_a_posterior_over_20_listed_strings_is_learnt(trained):
    _, metrics = trained
    before, after = metrics["base_0_shot/exact_tv/numbers"], metrics["final/exact_tv/numbers"]
    print(f"total variation {before:.3f} before, {after:.3f} after")
    assert before > 0.9
    # 0.14 was seen, and 0.58 after 24 steps.
    assert after < 0.6
    assert metrics["final/invalid_share/numbers"] < 0.2


def test_plain_peft_reads_the_adapter(trained):
    folder, _ = trained
    policy = Policy.load(folder, device="cpu")
    adapter = folder / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    ).eval()
    prompt = policy.task.prompt
    ids = AutoTokenizer.from_pretrained(base)(prompt, return_tensors="pt")["input_ids"]
    assert tuple(ids[0].tolist()) == policy.lm.encode_prompt(prompt)
    with torch.no_grad():
        expected = policy.lm.whole_logits([ids[0].tolist()])
        torch.testing.assert_close(plain(ids).logits, expected, atol=1e-3, rtol=1e-4)
        with plain.disable_adapter():
            bare = plain(ids).logits
    assert (bare - expected).abs().max() > 0.1, "the adapter says something"


def test_a_resumed_run_is_the_straight_one_bit_for_bit(tmp_path):
    short = [
        "sampling.n_samples=16",
        "evaluation.singles=50",
        "evaluation.baseline_shots=[]",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.replay_buffer.probability=0.5",
        "trainer.max_steps=4",
    ]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    # Step 3 is lost: the checkpoint is of step 2.
    with copied(straight, {(MOMENTS[0], 3): resumed}):
        run(straight, *short, base=COMMON)
    assert newest_state(resumed)["global_step"] == 2
    run(resumed, *short, "resume=auto", base=COMMON)
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    states = [newest_state(folder) for folder in (straight, resumed)]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    assert_same(states[1]["optimizer_states"], states[0]["optimizer_states"])
    assert_same(states[1]["state_dict"], states[0]["state_dict"])
