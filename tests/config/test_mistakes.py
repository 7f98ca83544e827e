"""Mistakes in a config: all at once, each with key, value, what is allowed, where, and a suggestion."""

from __future__ import annotations

import json

import pytest

from gfn_runner.app import main
from gfn_runner.cli.compose import checked
from gfn_runner.errors import Problem, UserError


def problems(*argv: str) -> dict[str, Problem]:
    with pytest.raises(UserError) as caught:
        checked(list(argv))
    return {problem.where: problem for problem in caught.value.problems}


def test_all_mistakes_are_reported_at_once():
    found = problems(
        "task=arithmetik",
        "taks=arithmetic",
        "optim.lr=-1",
        "sampling.samples=many",
        "objective.regression.knd=huber",
        "callbacks.replay=3",
        "lm.lora.rank=0",
        "lm.name=/no/such/folder",
        "sampling.min_temperature=3",
    )
    assert {
        "task", "taks", "optim.lr", "sampling.samples", "objective.regression.knd",
        "callbacks.replay", "lm.lora.rank",
    } <= found.keys()  # fmt: skip
    assert "arithmetic_tool" in found["task"].allowed
    assert "task=arithmetic" in found["task"].fix
    assert found["taks"].fix == "did you mean task?"
    assert "-1" in found["optim.lr"].what and "greater than 0" in found["optim.lr"].allowed
    assert found["optim.lr"].source == "command line"
    assert "'many'" in found["sampling.samples"].what
    assert found["objective.regression.knd"].fix == "did you mean objective.regression.kind?"
    assert "tolerance" in found["callbacks.replay"].allowed


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["task.min_len=30"], "task.min_len"),
        (["objective=vargrad", "sampling.samples=1"], "sampling.samples"),
        (["baseline=grpo", "callbacks/replay=off", "sampling.samples=1"], "sampling.samples"),
        (["objective=joint", "sampling.samples=1", "task.min_len=5"], "task.min_len"),
        (["objective=joint", "objective.between=0", "task.min_len=5"], "task.min_len"),
        (["objective=subtb", "task.min_len=5"], "task.min_len"),
        (["sampling.conditions=0"], "sampling.conditions"),
        (["sampling.min_temperature=3"], "sampling.min_temperature"),
        (["callbacks.replay.probability=1", "callbacks.replay.seed_demonstrations=false"],
         "callbacks.replay.probability"),
        (["task.n_demonstrations=50"], "task.n_demonstrations"),
        (["task.data.train_operands=[]"], "task.data.train_operands"),
        (["task.data.rationales=/no/file.json"], "task.data.rationales"),
        (["lm.device=cuda"], "lm.device"),
        (["lm.dtype=float8"], "lm.dtype"),
        (["lm.dtype=float16"], "lm.dtype"),
        (["lm.dtype=float16", "baseline=sft"], "lm.dtype"),
        (["trainer.devices=2", "trainer.strategy=fsdp", "lm.quantization=4bit"], "trainer.strategy"),
        (["task=subjectivity", "trainer.devices=2", "trainer.strategy=fsdp"], "trainer.strategy"),
        (["lm.quantization=4bit"], "lm.quantization"),
        (["callbacks.tempering.end=0"], "callbacks.tempering.end"),
        (["objective._target_=gfn_runner.tasks.arithmetic.IntegerArithmetic"], "objective._target_"),
        (["task._target_=nowhere.Nothing"], "task._target_"),
        (["task=subjectivity", "task.answer='; so {label}.'"], "task.answer"),
        (["task=subjectivity", "task.data.train=/no/file.jsonl"], "task.data.train"),
        (["em.rounds=-1"], "em.rounds"),
        (["em=twice"], "em"),
        (["seed=-1"], "seed"),
        (["dry_run=perhaps"], "dry_run"),
        (["resume=/no/such/run"], "resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)  # fmt: skip
def test_impossible_values_are_refused(argv, where):
    import torch

    if where in ("lm.device", "lm.quantization") and torch.cuda.is_available():
        pytest.skip("possible where there is a GPU")
    found = problems(*argv)
    assert where in found
    assert found[where].allowed or found[where].fix


@pytest.mark.parametrize(
    "argv",
    [
        *([f"objective={name}"] for name in ("tb", "joint", "subtb", "db")),
        ["objective=tb", "task.min_len=5"],
        ["baseline=ppo", "callbacks/replay=off"],
        [
            "baseline=sft",
            "callbacks/replay=off",
            "objective=vargrad",
        ],  # the baseline has its own loss
    ],
    ids=" ".join,
)
def test_one_sample_is_enough_for_what_compares_no_trajectories(argv):
    checked([*argv, "sampling.samples=1"])


def test_a_value_from_a_yaml_is_located(tmp_path, monkeypatch):
    from gfn_runner.cli.compose import CONF
    from gfn_runner.cli.sources import Sources

    source = Sources(CONF, {"optim": "adamw", "experiment": "paper/arithmetic"}, ["seed"])
    line = (CONF / "optim" / "adamw.yaml").read_text().splitlines().index
    clip = "grad_clip: 1.0 # norm of the averaged gradient; 0: never"
    assert source("optim.grad_clip") == f"conf/optim/adamw.yaml:{line(clip) + 1}"
    assert source("optim.lr").startswith("conf/experiment/paper/arithmetic.yaml:")
    assert source("seed") == "command line"


def test_a_sweep_is_checked_in_every_job():
    found = problems("-m", "optim.lr=1e-4,-1e-4", "task=arithmetic,arithmetik")
    assert {"optim.lr", "task"} <= found.keys()


def test_a_zero_condition_task_is_refused(monkeypatch):
    from gfn_runner.data.samples import TaskData
    from gfn_runner.tasks.arithmetic import IntegerArithmetic

    monkeypatch.setattr(IntegerArithmetic, "load", lambda self, seed: TaskData([], []))
    assert "zero training conditions" in problems("seed=0")["task.data"].what


def test_malformed_data_is_reported_with_the_other_mistakes_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "bad.json"
    data.write_text(json.dumps([{"str_query": "Question: 1 + 2 = ? Answer:"}], indent=1))
    with pytest.raises(SystemExit) as stop:
        main([f"task.data.answers={data}", "optim.lr=-1"])
    assert stop.value.code == 2
    screen = capsys.readouterr().err
    assert "line 2" in screen and "num_sol" in screen and "optim.lr" in screen
    assert len(screen.splitlines()) < 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


def test_a_dry_run_prints_the_whole_config_and_writes_nothing(tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.chdir(tmp_path)
    main(["dry_run=true", "task=arithmetic_tool", "objective=subtb", "objective.lam=0.9"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["task"]["calculator"] is True
    assert shown["objective"]["lam"] == 0.9
    assert shown["callbacks"]["replay"]["capacity"] == 50
    assert not list(tmp_path.iterdir())


def test_the_check_imports_nothing_heavy():
    import subprocess
    import sys

    code = (
        "import sys; from gfn_runner.cli.compose import checked; checked(['seed=1']);"
        "print([m for m in ('lightning', 'transformers', 'peft', 'wandb') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
