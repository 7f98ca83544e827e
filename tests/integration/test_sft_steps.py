"""Training that begins with steps of supervised fine-tuning (``sampling.sft_share``)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runs import TINY, made_once, newest_state, run, steps_of

LINES = (
    *TINY,
    "task=infilling",
    "task.data.n_train=20",
    "task.data.n_test=2",
    "evaluation.baseline_shots=[]",
    "evaluation.final=1",
    "callbacks.evaluation.every_n_steps=0",
    "callbacks/report=off",
    "trainer.max_steps=5",
)
NO_BUFFER = ("callbacks/replay_buffer=off", "callbacks.replay_buffer.beside_fresh=0")


def numbers(folder: Path, name: str) -> list[float | None]:
    return [record.get(f"train/{name}") for record in steps_of(folder)]


@pytest.fixture(scope="session")
def begun(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        run(folder, "sampling.sft_share=0.6", base=LINES)

    return made_once(tmp_path_factory, "sft-steps", make)


def test_the_first_steps_are_those_of_supervised_fine_tuning(begun, tmp_path):
    alone = run(tmp_path / "sft", "baseline=sft", "sampling.sft_share=0.6", *NO_BUFFER, base=LINES)
    assert numbers(begun, "loss")[:3] == pytest.approx(numbers(alone, "loss")[:3], rel=1e-5)
    # Then strings are sampled, and have φ.
    spread = numbers(begun, "phi_spread")
    assert spread[:3] == [None] * 3 and None not in spread[3:]
    assert numbers(alone, "phi_spread") == [None] * 5


def test_a_run_that_is_made_longer_does_not_go_back(begun, tmp_path):
    folder = shutil.copytree(begun, tmp_path / "run")
    run(folder, "sampling.sft_share=0.6", "trainer.max_steps=12", f"resume={folder}", base=LINES)
    assert newest_state(folder)["sft_steps"] == 3
    assert None not in numbers(folder, "phi_spread")[3:]


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_policy_gradients_go_on_from_them(method, begun, tmp_path):
    lines = [f"baseline={method}", "sampling.sft_share=0.6", *NO_BUFFER]
    folder = run(tmp_path / "run", *lines, base=LINES)
    assert numbers(folder, "loss")[:3] == pytest.approx(numbers(begun, "loss")[:3], rel=1e-5)
    divergence = numbers(folder, "kl_base")
    assert divergence[:3] == [None] * 3 and None not in divergence[3:]
