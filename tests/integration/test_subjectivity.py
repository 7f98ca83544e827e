"""Subjectivity with the embedded model: E-step, M-step, what is left of both, and going on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.inference import Policy
from tests import runs
from tests.runs import TINY, contents, made_once, metrics_of, newest_state, weights_of

LINES = (
    *TINY,
    "task=subjectivity",
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.votes=2",
    "evaluation.singles=2",
    "evaluation.final=2",
    "evaluation.baseline_shots=[0,2]",
    "callbacks.replay_buffer.probability=0.5",
    "task.data.n_train=4",
    "task.data.n_test=2",
    "task.n_demonstrations=3",
    "trainer.max_steps=3",
    "em.m_steps=6",
    "em.m_batch=4",
    "em.m_lr=2e-3",
    "callbacks/report=off",
)


NO_BUFFER = ("callbacks/replay_buffer=off", "callbacks.replay_buffer.probability=0")
TWICE = ("em.rounds=2", "evaluation.baseline_shots=[]")


def run(folder: Path, *lines: str) -> Path:
    return runs.run(folder, *lines, base=LINES)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Path:
    """A finished run of one round."""
    return made_once(tmp_path_factory, "once", run)


def test_a_run_leaves_both_steps(once):
    metrics = metrics_of(once)
    for prefix in ("final", "e_step", "base_0_shot", "direct_0_shot", "direct_2_shot"):
        for name in ("vote", "single", "predictive", "greedy"):
            assert f"{prefix}/{name}_accuracy/test" in metrics
    assert "base_2_shot/vote_accuracy/test" not in metrics
    assert metrics["m_step/loss_after"] < metrics["m_step/loss_before"]
    assert metrics["run/steps"] == 3
    assert any(
        t.abs().max() > 0 for n, t in weights_of(once, "answer_adapter").items() if "lora_B" in n
    )
    state = newest_state(once)
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
    assert runs.exit_code("mode=evaluate", f"run={folder}") == 0
    (again,) = folder.glob("evaluations/**/metrics.json")
    found, final = json.loads(again.read_text()), metrics_of(once)
    # The greedy rationale needs no luck.
    name = "final/greedy_accuracy/test"
    assert found[name] == final[name]


def test_mode_evaluate_of_a_supervised_run_takes_its_direct_answers(tmp_path):
    folder = run(tmp_path / "sft", "baseline=sft", "em.rounds=0", *NO_BUFFER)
    assert runs.exit_code("mode=evaluate", f"run={folder}") == 0
    (again,) = folder.glob("evaluations/**/metrics.json")
    found, final = json.loads(again.read_text()), metrics_of(folder)
    for name in ("vote_accuracy", "label_log_prob"):
        assert found[f"final/{name}/test"] == pytest.approx(final[f"final/{name}/test"], abs=1e-4)


def test_a_second_round_goes_on_from_the_first_as_if_never_interrupted(once, tmp_path):
    twice = shutil.copytree(once, tmp_path / "twice")
    run(twice, f"resume={twice}", *TWICE)
    straight = run(tmp_path / "run", *TWICE)
    for name in ("adapter", "answer_adapter"):
        expected, found = weights_of(straight, name), weights_of(twice, name)
        for key, tensor in weights_of(once, name).items():
            torch.testing.assert_close(found[key], expected[key], atol=1e-5, rtol=1e-4)
            if "lora_B" in key:
                assert not torch.equal(found[key], tensor)
    assert metrics_of(twice)["run/steps"] == 6
    assert metrics_of(twice)["e_step/n_questions/test"] == 2


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        (["trainer.max_steps=9"], "trainer.max_steps"),
        (["em.rounds=0"], "em.rounds"),
        (["em.rounds=2", "em.lora.rank=2"], "em.lora"),
        ([], "resume"),
    ],
)
def test_after_an_m_step_some_settings_may_not_change(once, lines, where, tmp_path):
    folder = shutil.copytree(once, tmp_path / "run")
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        run(folder, f"resume={folder}", *lines)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert contents(folder) == before
