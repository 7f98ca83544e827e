"""Runs on real weights: a listed posterior, a resumed run, an adapter read by plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gfn_runner.app import train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.inference import Policy

pytestmark = pytest.mark.real
# 20 strings, all of which are known: from " 0" to " 19".
COMMON = [
    "experiment=smollm2/random_number",
    "task.high=19",
    "task.max_len=3",
    "task.eval_max_len=3",
    "callbacks.replay.capacity=20",
    "lm.device=cpu",
    "lm.dtype=float32",
    "callbacks.progress.show=none",
    "callbacks.evaluation.every=0",
    "callbacks/report=off",
    "logger=local",
]


def run(folder: Path, *lines: str) -> dict[str, Any]:
    """Train in ``folder`` as the program would; its final metrics."""
    overrides = [*COMMON, *lines]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(overrides)
    train_and_evaluate(config, folder, overrides)
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gfn_runner.report.figures.draw_all", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run of 40 steps of 64 samples: two minutes on two cores."""
    folder = tmp_path_factory.mktemp("listed") / "run"
    steps = ["trainer.max_steps=40", "sampling.samples=64", "optim.warmup=8"]
    metrics = run(folder, *steps, "callbacks.evaluation.singles=200")
    return folder, metrics


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
        "sampling.samples=16",
        "callbacks.evaluation.singles=50",
        "callbacks.evaluation.baseline_shots=[]",
        "callbacks.checkpoint.every=1",
        "callbacks.replay.probability=0.5",
    ]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run(straight, *short, "trainer.max_steps=4")
    stopped(resumed, [*short, "trainer.max_steps=4"], after=2)
    run(resumed, *short, "trainer.max_steps=4", "resume=auto")
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    states = [newest_state(folder) for folder in (straight, resumed)]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    assert_same(states[0]["optimizer_states"], states[1]["optimizer_states"])
    assert_same(states[0]["state_dict"], states[1]["state_dict"])


class Killed(BaseException):
    """Stands for a signal that cannot be caught."""


def stopped(folder: Path, lines: list[str], *, after: int) -> None:
    """A run that dies behind a step, its checkpoint written."""
    from gfn_runner.callbacks.progress import StepProgress

    lives = StepProgress.on_train_batch_end

    def dies(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step > after:
            raise Killed
        lives(self, trainer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepProgress, "on_train_batch_end", dies)
        with pytest.raises(Killed):
            run(folder, *lines)
    assert newest_state(folder)["global_step"] == after


def newest_state(folder: Path) -> dict[str, Any]:
    files = folder.glob("checkpoints/*.ckpt")
    states = [torch.load(file, weights_only=True) for file in files]
    return max(states, key=lambda state: state["global_step"])


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
