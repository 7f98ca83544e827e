"""What a run leaves, what it refuses, and how it ends where something fails."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

from gfn_runner.config.compose import new_folder
from gfn_runner.errors import UserError
from tests.runs import (
    SMALL,
    contents,
    exit_code,
    lines_of,
    metrics_of,
    newest_state,
    run,
    steps_of,
    weights_of,
)

SHORT = (
    *SMALL,
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.baseline_shots=[]",
    "callbacks/report=off",
)


def test_everything_is_left(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert (
        config["trainer"]["max_steps"] == 4
        and config["callbacks"]["replay_buffer"]["capacity"] == 50
    )
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"]
    # Without git, or outside a clone, nothing is known.
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40
    metrics = metrics_of(finished)
    assert all(value is None or isinstance(value, float) for value in metrics.values())
    for name in ("vote_accuracy", "single_accuracy", "parsed", "log_reward"):
        assert {f"final/{name}/{n}_operands" for n in (3, 4, 5)} <= metrics.keys()
    assert "base_0_shot/vote_accuracy/3_operands" in metrics
    assert metrics["run/steps"] == 4
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures == {"loss_and_reward.png", "phi_spread.png", "accuracy.png", "log_reward.png"}
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step-0000004.ckpt"]
    records = lines_of(finished / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4]
    assert [r["step"] for r in records if "eval/parsed/3_operands" in r] == [2, 4]
    assert [r["step"] for r in records if "final/parsed/3_operands" in r] == [4]


def test_samples_can_be_judged_again(finished):
    from gfn_runner.tasks.arithmetic import IntegerArithmetic

    samples = lines_of(finished / "samples.jsonl")
    assert len(samples) == 6
    singles = [
        IntegerArithmetic.read_answer(text) == record["answer"]
        for record in samples
        if record["group"] == "4_operands"
        for text in record["singles"]
    ]
    share = metrics_of(finished)["final/single_accuracy/4_operands"]
    assert sum(singles) / len(singles) == share


def test_a_checkpoint_holds_no_base_weights(finished):
    state = newest_state(finished)
    assert state["state_dict"] and all("lora" in name for name in state["state_dict"])
    assert state["callbacks"]["ReplayBufferCallback"]["buffers"][0]["keys"]
    n_adapter = sum(t.numel() for t in weights_of(finished).values())
    assert sum(t.numel() for t in state["state_dict"].values()) == n_adapter


def test_a_second_run_gets_a_folder_of_its_own(tmp_path):
    wanted = tmp_path / "arithmetic"
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(new_folder, [wanted] * 16))
    assert {*folders} == {wanted, *(tmp_path / f"arithmetic-{n}" for n in range(2, 17))}
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ([], ["resume"]),  # it is finished
        (["lm.lora.rank=4", "trainer.max_steps=9"], ["lm.lora"]),
        (
            ["objective=tb", "seed=7", "task.max_len=12", "trainer.accumulate_grad_batches=2"],
            ["objective._target_", "seed", "task", "trainer.accumulate_grad_batches"],
        ),
    ],
)
def test_a_run_is_resumed_only_as_it_began_and_a_refusal_changes_nothing(
    finished, tmp_path, lines, where
):
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        run(folder, "trainer.max_steps=4", f"resume={folder}", *lines)
    assert sorted(problem.where for problem in caught.value.problems) == where
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["resume={}", "trainer.max_steps=9", "seed=7"], "seed: given 7"),
        (["resume={}", "task=arithmetic_tool"], "is a run of task 'arithmetic'"),
        (["resume={}"], "trainer.max_steps above 4"),
        ([*SMALL, "hydra.run.dir={}"], "already holds a run"),
    ],
)
def test_the_program_leaves_a_run_as_it_is_that_it_refuses_to_touch(
    finished, tmp_path, lines, said, capsys
):
    folder = shutil.copytree(finished, tmp_path / "copy")
    (folder / "run.log").touch()
    before = contents(folder)
    assert exit_code(*(line.format(folder) for line in lines)) == 2
    shown = capsys.readouterr().err
    assert said in shown and "nothing was started, nothing was written" in shown
    assert contents(folder) == before


def test_results_are_there_once_the_figures_are(finished, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / "copy")
    for name in ("metrics.json", "report.html"):
        (folder / name).unlink()

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    lines = ("trainer.max_steps=4", "callbacks.evaluation.every_n_steps=0", "resume=auto")
    with monkeypatch.context() as patched:
        patched.setattr("gfn_runner.run.final_evaluation.draw_all", no_space)
        with pytest.raises(UserError, match="No space left"):
            run(folder, *lines, figures=True)
    assert not (folder / "metrics.json").exists(), "it could not be resumed"
    run(folder, *lines)
    assert (folder / "metrics.json").exists()
    (folder / "report.html").unlink()
    capsys.readouterr()
    run(folder, *lines, "optimizer.lr=0.5")
    said = capsys.readouterr().out
    assert "already finished, skipped" in said and "other settings: optimizer.lr=0.0003\n" in said
    assert (folder / "report.html").exists(), "an interruption has cost it"


@pytest.mark.parametrize(
    ("where", "rest"),
    [
        ("gfn_runner.tasks.base.GFlowNetModule.training_step", "resume=auto starts over"),
        ("lightning.Trainer.validate", "resume={}` continues"),  # the final evaluation
    ],
)
def test_a_run_that_is_stopped_at_once_says_how_to_go_on(
    tmp_path, monkeypatch, capsys, where, rest
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", "trainer.max_steps=1", base=SHORT)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
    assert stopped.value.code == 130
    assert "stopped immediately" in (said := capsys.readouterr().err)
    assert rest.format(tmp_path / "run") in said


@pytest.mark.parametrize(
    "objective",
    [
        "subtb",
        pytest.param("db", marks=pytest.mark.slow),
        pytest.param("vargrad", marks=pytest.mark.slow),
    ],
)
def test_every_objective_trains(tmp_path, objective):
    folder = run(tmp_path / "run", "trainer.max_steps=2", f"objective={objective}", base=SHORT)
    losses = [record["train/loss"] for record in steps_of(folder)]
    assert len(losses) == 2 and all(loss is not None and loss >= 0 for loss in losses)


def test_a_profile_names_the_phases_and_products_are_as_precise_as_was_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    lines = ["+trainer.profiler=simple", "float32_matmul_precision=high"]
    folder = run(tmp_path / "run", "trainer.max_steps=2", *lines, base=SHORT)
    assert asked == ["high"]
    (report,) = folder.glob("fit-profile*.txt")
    text = report.read_text(encoding="utf-8")
    for phase in ("sample", "reward", "policy", "objective", "backward"):
        assert f"gfn/{phase} " in text
    step = next(r for r in steps_of(folder) if "seconds/sample" in r)
    parts = [value for name, value in step.items() if name.startswith("seconds/")]
    assert len(parts) == 6 and sum(parts) == pytest.approx(step["train/seconds"])


def test_memory_that_runs_out_ends_with_the_phase_and_what_to_lower(tmp_path, monkeypatch):
    def greedy(*arguments):
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("gfn_runner.algorithms.gflownet.score_policy", greedy)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", "trainer.max_steps=2", base=SHORT)
    (problem,) = caught.value.problems
    assert "'policy'" in problem.where and "sampling.n_conditions" in problem.fix


def test_the_calculator_variant_runs_and_its_tokens_are_observations(tmp_path):
    lines = [
        "task=arithmetic_tool",
        "trainer.max_steps=2",
        "callbacks.replay_buffer.probability=0.5",
    ]
    folder = run(tmp_path / "run", *lines, base=SHORT)
    buffer = newest_state(folder)["callbacks"]["ReplayBufferCallback"]["buffers"][0]
    assert not buffer["is_action"].all()
    records = lines_of(folder / "demonstrations.jsonl")
    assert all(text.endswith("=") for record in records for text in record["demonstrations"])


@pytest.mark.slow
def test_wandb_leaves_an_offline_run_and_never_asks(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    folder = run(tmp_path / "run", "logger=wandb", "trainer.max_steps=1", base=SHORT)
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
