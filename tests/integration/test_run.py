"""What a run leaves, and that it can be gone on with."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gfn_runner.app import main
from gfn_runner.cli.compose import new_folder
from gfn_runner.errors import UserError
from gfn_runner.lm.settings import EMBEDDED_FOLDER

from .conftest import SMALL, run

ROOT = Path(__file__).resolve().parents[2]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_everything_is_left(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 4 and config["callbacks"]["replay"]["capacity"] == 50
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["packages"]["torch"] and len(environment["git"]["commit"]) == 40
    metrics = json.loads((finished / "metrics.json").read_text())
    assert all(value is None or isinstance(value, float) for value in metrics.values())
    for name in ("vote_accuracy", "single_accuracy", "parsed", "log_reward"):
        assert {f"final/{name}/{n}_operands" for n in (3, 4, 5)} <= metrics.keys()
    assert "base_0_shot/vote_accuracy/3_operands" in metrics
    assert metrics["run/steps"] == 4
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures == {"loss_and_reward.png", "phi_spread.png", "accuracy.png", "log_reward.png"}
    assert [path.name for path in (finished / "checkpoints").iterdir()] == ["step-0000004.ckpt"]


def test_the_precision_of_products_is_that_of_the_settings(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    run(tmp_path / "run", "trainer.max_steps=1", "trainer.float32_matmul_precision=high")
    assert asked == ["high"]


def test_every_optimizer_step_has_a_record(finished):
    records = lines_of(finished / "metrics.jsonl")
    trained = [record["step"] for record in records if "train/loss" in record]
    assert trained == [1, 2, 3, 4]
    assert [r["step"] for r in records if "eval/parsed/3_operands" in r] == [2, 4]
    assert [r["step"] for r in records if "final/parsed/3_operands" in r] == [4]


def test_samples_can_be_judged_again(finished):
    from gfn_runner.tasks.arithmetic import IntegerArithmetic

    samples = lines_of(finished / "samples.jsonl")
    metrics = json.loads((finished / "metrics.json").read_text())
    assert len(samples) == 6
    singles = [
        IntegerArithmetic.read_answer(text) == record["answer"]
        for record in samples
        if record["group"] == "4_operands"
        for text in record["singles"]
    ]
    assert sum(singles) / len(singles) == metrics["final/single_accuracy/4_operands"]


def test_a_checkpoint_holds_no_base_weights(finished):
    path = next((finished / "checkpoints").iterdir())
    state = torch.load(path, weights_only=True)
    assert state["state_dict"] and all("lora" in name for name in state["state_dict"])
    assert state["callbacks"]["ReplayCallback"]["buffer"]
    n_adapter = sum(t.numel() for t in adapter_of(finished).values())
    assert sum(t.numel() for t in state["state_dict"].values()) == n_adapter


def test_plain_peft_reads_the_adapter_and_gets_the_same_log_probabilities(finished):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = lines_of(finished / "samples.jsonl")[0]
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    policy = PeftModel.from_pretrained(base, finished / "adapter").eval()
    prompt = tokenizer(record["prompt"])["input_ids"]
    string = tokenizer(record["singles"][0] + ".", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits_TV = policy(torch.tensor([prompt + string])).logits[0]
    # Special tokens are never written: the rest is renormalised.
    logits_TV[:, tokenizer.all_special_ids] = float("-inf")
    log_probs_TV = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1]
    log_pf = log_probs_TV.gather(1, torch.tensor(string)[:, None]).sum().item()
    assert log_pf == pytest.approx(record["log_pf"][0], abs=2e-3)
    trained = [t for name, t in adapter_of(finished).items() if "lora_B" in name]
    assert any(t.abs().max() > 0 for t in trained)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(finished, tmp_path):
    folder = run(tmp_path / "run", "trainer.max_steps=2", "callbacks.evaluation.every=2")
    before = (folder / "metrics.jsonl").read_text()
    run(folder, "trainer.max_steps=4", "callbacks.evaluation.every=2", f"resume={folder}")
    straight, resumed = adapter_of(finished), adapter_of(folder)
    for name, tensor in straight.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=1e-5)
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    records = lines_of(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2, 3, 4]


def test_a_finished_run_is_not_run_again(finished):
    before = (finished / "metrics.json").read_bytes()
    with pytest.raises(UserError, match="finished"):
        run(finished, "trainer.max_steps=4", f"resume={finished}")
    assert (finished / "metrics.json").read_bytes() == before


def test_a_run_of_another_task_is_not_resumed(finished, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    before = sorted(path.stat().st_mtime_ns for path in folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(["task=arithmetic_tool", f"resume={folder}"])
    assert stop.value.code == 2
    assert "is a run of task 'arithmetic'" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*")) == before


def test_a_second_run_gets_a_folder_of_its_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(new_folder, [tmp_path / "arithmetic"] * 16))
    assert len(set(folders)) == 16 and all(folder.is_dir() for folder in folders)


def test_a_folder_that_holds_a_run_is_not_written_into(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match="holds a run already"):
        run(finished, "trainer.max_steps=1")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("lm.lora.rank=4", "lm.lora"),
        ("objective=tb", "objective._target_"),
        ("seed=7", "seed"),
        ("task.max_len=12", "task"),
        ("trainer.accumulate=2", "trainer.accumulate"),
    ],
)
def test_a_run_goes_on_only_as_it_began_and_a_refusal_changes_nothing(finished, line, where):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError) as caught:
        run(finished, "trainer.max_steps=9", f"resume={finished}", line)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["resume={}", "trainer.max_steps=9", "seed=7"], "seed: given 7"),
        (["resume={}"], "is finished: it has done 4 of 4 steps"),
        ([*SMALL, "hydra.run.dir={}"], "holds a run already"),
    ],
)
def test_the_program_leaves_a_run_as_it_is_that_it_refuses_to_touch(
    finished, tmp_path, lines, said
):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "run.log").touch()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "gfn_runner", *(line.format(folder) for line in lines)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert "nothing was started, nothing was written" in done.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_results_are_there_once_the_figures_are(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for name in ("metrics.json", "report.html"):
        (folder / name).unlink()

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    lines = ("trainer.max_steps=4", "callbacks.evaluation.every=0", "resume=auto")
    with monkeypatch.context() as patched:
        patched.setattr("gfn_runner.report.figures.draw_all", no_room)
        with pytest.raises(UserError, match="No space left"):
            run(folder, *lines)
    assert not (folder / "metrics.json").exists(), "it would not be gone on with"
    run(folder, *lines)
    assert (folder / "metrics.json").exists()
    (folder / "report.html").unlink()
    capsys.readouterr()
    run(folder, *lines, "optim.lr=0.5")
    said = capsys.readouterr().out
    assert "finished before" in said and "other settings: optim.lr=0.0003\n" in said
    assert (folder / "report.html").exists(), "an interruption has cost it"


@pytest.mark.parametrize(
    "where", ["gfn_runner.module.GFlowNetModule.training_step", "gfn_runner.app._evaluate"]
)
def test_a_run_that_is_stopped_at_once_says_how_to_go_on(tmp_path, monkeypatch, capsys, where):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    heard = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", "trainer.max_steps=1", "callbacks.evaluation.every=0")
    signal.signal(signal.SIGINT, heard)  # Lightning is deaf to it from then on
    assert stopped.value.code == 130
    saved = where.endswith("_evaluate")
    rest = f"resume={tmp_path / 'run'}` goes on" if saved else "resume=auto` begins anew"
    assert "stopped at once" in (said := capsys.readouterr().err) and rest in said


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(tmp_path):
    lines = ["trainer.max_steps=1", "callbacks.evaluation.every=0", "optim.lr=1e-4,2e-4"]
    command = [sys.executable, "-m", "gfn_runner", "-m", *SMALL, *lines, f"output={tmp_path}"]
    subprocess.run([*command, "logger=local"], check=True, capture_output=True, cwd=ROOT)
    found = sorted(tmp_path.glob("arithmetic/multirun/*/*/*/metrics.json"))
    assert [path.parent.name for path in found] == ["0", "1"]
    rates = [yaml.safe_load((p.parent / "config.yaml").read_text())["optim"]["lr"] for p in found]
    assert rates == [1e-4, 2e-4]


def test_a_policy_that_breaks_is_named_with_step_and_condition(tmp_path):
    lines = ["trainer.max_steps=6", "optim.lr=1e30", "optim.grad_clip=0", "callbacks/replay=off"]
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", *lines, "callbacks.evaluation.every=0")
    (problem,) = caught.value.problems
    assert problem.where.startswith("optimizer step ") and "not finite" in problem.what
    assert "Question: " in problem.what or "condition" in problem.what


@pytest.mark.parametrize("objective", ["subtb", "db", "vargrad", "tb"])
def test_every_objective_trains(tmp_path, objective):
    lines = ["trainer.max_steps=2", "callbacks.evaluation.every=0", f"objective={objective}"]
    folder = run(tmp_path / "run", *lines, "callbacks.evaluation.baseline_shots=[]")
    losses = [r["train/loss"] for r in lines_of(folder / "metrics.jsonl") if "train/loss" in r]
    assert len(losses) == 2 and all(loss is not None and loss >= 0 for loss in losses)


def test_a_profile_names_the_phases(tmp_path):
    folder = run(tmp_path / "run", "trainer.max_steps=2", "trainer.profiler=simple")
    (report,) = folder.glob("fit-profile*.txt")
    text = report.read_text(encoding="utf-8")
    for phase in ("sample", "reward", "policy", "objective", "backward"):
        assert f"gfn/{phase} " in text
    step = next(r for r in lines_of(folder / "metrics.jsonl") if "seconds/sample" in r)
    parts = [value for name, value in step.items() if name.startswith("seconds/")]
    assert len(parts) == 6 and sum(parts) == pytest.approx(step["train/seconds"])


def test_memory_that_runs_out_ends_with_the_phase_and_what_to_lower(tmp_path, monkeypatch):
    def greedy(*arguments):
        return torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr("gfn_runner.module.score_policy", greedy)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", "trainer.max_steps=2")
    (problem,) = caught.value.problems
    assert "'policy'" in problem.where and "sampling.conditions" in problem.fix


def test_accumulated_batches_make_one_step(tmp_path):
    lines = ["trainer.accumulate=2", "trainer.max_steps=2", "callbacks.evaluation.every=0"]
    folder = run(tmp_path / "run", *lines, "callbacks.evaluation.baseline_shots=[]")
    records = lines_of(folder / "metrics.jsonl")
    assert [r["step"] for r in records if "train/loss" in r] == [1, 2]


def test_the_calculator_variant_runs_and_its_tokens_are_observations(tmp_path):
    lines = ["task=arithmetic_tool", "trainer.max_steps=2", "callbacks.replay.probability=0.5"]
    folder = run(tmp_path / "run", *lines)
    state = torch.load(next((folder / "checkpoints").iterdir()), weights_only=True)
    entries = [e for rows in state["callbacks"]["ReplayCallback"]["buffer"].values() for e in rows]
    assert any(not all(entry["is_action"]) for entry in entries)
    records = lines_of(folder / "demonstrations.jsonl")
    assert all(text.endswith("=") for record in records for text in record["demonstrations"])


def test_wandb_leaves_an_offline_run_and_never_asks(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    lines = ["logger=wandb", "trainer.max_steps=1", "callbacks.evaluation.every=0"]
    folder = run(tmp_path / "run", *lines, "callbacks.evaluation.baseline_shots=[]")
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
