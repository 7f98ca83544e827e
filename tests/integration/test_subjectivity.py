"""Subjectivity with the embedded model: E-step, M-step, what is left of both, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir
from safetensors.torch import load_file

from gfn_runner.app import main, train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines
from gfn_runner.errors import UserError
from gfn_runner.inference import Policy

LINES = [
    "experiment=tiny/smoke",
    "task=subjectivity",
    "callbacks.progress.show=none",
    "callbacks.evaluation.every=0",
    "callbacks.evaluation.votes=2",
    "callbacks.evaluation.singles=2",
    "callbacks.evaluation.final=2",
    "callbacks.evaluation.baseline_shots=[0,2]",
    "callbacks.replay.probability=0.5",
    "task.data.n_train=4",
    "task.data.n_test=2",
    "task.n_demonstrations=3",
    "trainer.max_steps=3",
    "trainer.threads=1",
    "em.m_steps=6",
    "em.m_batch=4",
    "em.m_lr=2e-3",
]


def run(folder: Path, *lines: str) -> Path:
    overrides = [*LINES, *lines]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(overrides)
    train_and_evaluate(config, folder, overrides)
    return folder


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    """A finished run of one round."""
    return run(tmp_path_factory.mktemp("once") / "run")


@pytest.fixture(scope="module")
def twice(once, tmp_path_factory) -> Path:
    """The same, gone on with behind its M-step for another round."""
    folder = shutil.copytree(once, tmp_path_factory.mktemp("twice") / "run")
    return run(folder, f"resume={folder}", "em.rounds=2", "callbacks.evaluation.baseline_shots=[]")


def test_a_run_leaves_both_steps(once):
    metrics = metrics_of(once)
    for prefix in ("final", "e_step", "base_0_shot", "direct_0_shot", "direct_2_shot"):
        for name in ("vote", "single", "predictive", "greedy"):
            assert f"{prefix}/{name}_accuracy/test" in metrics
    assert "base_2_shot/vote_accuracy/test" not in metrics
    assert metrics["m_step/loss_after"] < metrics["m_step/loss_before"]
    assert metrics["run/steps"] == 3
    assert any(
        t.abs().max() > 0 for n, t in tensors(once, "answer_adapter").items() if "lora_B" in n
    )
    state = torch.load(once / "checkpoints" / "step-0000003.ckpt", weights_only=True)
    assert state["state_dict"].keys() and not any(".answers." in n for n in state["state_dict"])


def test_the_policy_of_a_run_has_its_answer_model(once, capsys):
    policy = Policy.load(once, device="cpu")
    assert policy.lm.m_steps == 1 and policy.lm.has_answer_adapter
    prompt = policy.task.load(0).evaluation[0].prompt
    shares = policy.predict(prompt, ["objective", "subjective"], n=3)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="given 'dull', which task subjectivity does not have"):
        policy.predict(prompt, ["objective", "dull"])
    typed = prompt.replace(policy.task.load(0).evaluation[0].key, "the film is long")
    assert policy.sample(typed, n=2)[0].log_reward is not None


def test_mode_evaluate_speaks_of_the_last_answer_model(once, tmp_path, capsys):
    folder = shutil.copytree(once, tmp_path / "run")
    main(["mode=evaluate", f"run={folder}"])
    (again,) = folder.glob("evaluations/**/metrics.json")
    found, final = json.loads(again.read_text()), metrics_of(once)
    # The greedy rationale needs no luck.
    name = "final/greedy_accuracy/test"
    assert found[name] == final[name]


def test_a_second_round_goes_on_from_the_first_as_if_never_interrupted(once, twice, tmp_path):
    straight = run(tmp_path / "run", "em.rounds=2", "callbacks.evaluation.baseline_shots=[]")
    for name in ("adapter", "answer_adapter"):
        expected, found = tensors(straight, name), tensors(twice, name)
        for key, tensor in tensors(once, name).items():
            torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-4)
            if "lora_B" in key:
                assert not torch.equal(found[key], tensor)
    assert metrics_of(twice)["run/steps"] == 6
    assert metrics_of(twice)["e_step/n_questions/test"] == 2


@pytest.mark.parametrize("lost", [["metrics.json"], ["metrics.json", "answer_adapter"]])
def test_a_run_cut_off_around_its_m_step_ends_the_same(once, lost, tmp_path):
    """Behind it, the M-step is not made twice; before it, it is made from the checkpoint."""
    folder = shutil.copytree(once, tmp_path / "run")
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run(folder, f"resume={folder}", "callbacks.evaluation.baseline_shots=[]")
    for name in ("adapter", "answer_adapter"):
        for key, tensor in tensors(once, name).items():
            torch.testing.assert_close(tensors(folder, name)[key], tensor, atol=1e-6, rtol=1e-5)
    before, now = metrics_of(once), metrics_of(folder)
    for name in ("m_step/loss_after", "e_step/log_reward/test", "final/log_reward/test"):
        assert now[name] == pytest.approx(before[name], abs=1e-3)


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (["trainer.max_steps=9"], "trainer.max_steps"),
        (["em.rounds=0"], "em.rounds"),
        (["em.rounds=2", "em.lora.rank=2"], "em.lora"),
        ([], "resume"),
    ],
)
def test_behind_an_m_step_some_things_stay(once, lines, where):
    before = {path: path.stat().st_mtime_ns for path in once.rglob("*")}
    with pytest.raises(UserError) as caught:
        run(once, f"resume={once}", *lines)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert {path: path.stat().st_mtime_ns for path in once.rglob("*")} == before
