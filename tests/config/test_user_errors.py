"""User errors on the command line: all at once, with key, value, what is allowed and a suggestion."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gfn_runner.cli.main import main

from ..command_line import configs, problems


@pytest.mark.parametrize("name", ["limit_val_batches", "overfit_batches", "fast_dev_run"])
def test_what_would_evaluate_other_conditions_is_refused(name):
    assert problems(f"+trainer.{name}=1").keys() == {f"trainer.{name}"}


def test_wrong_values_of_all_objects_are_reported_at_once():
    """Each with its key, what was given and what is allowed."""
    given = {
        "callbacks.progress.show": "xx",
        "trainer.max_steps": "0",
        "trainer.devices": "two",
        "+trainer.no_such": "1",
        "optimizer.lr": "-1",
        "logger.jsonl._target_": "foo.bar",
        "callbacks.replay_buffer": "off",
        "task.data.n_test": "-2",
    }
    found = problems(*(f"{key}={value}" for key, value in given.items()))
    assert found.keys() == {key.lstrip("+") for key in given}
    assert found["trainer.no_such"].what == "unknown key"
    assert "accumulate_grad_batches" in found["trainer.no_such"].allowed
    for key, value in given.items():
        assert value in found[key.lstrip("+")].what or key == "+trainer.no_such"
    allowed = {
        "callbacks.progress.show": "'auto', 'bar', 'lines' or 'none'",
        "trainer.max_steps": "a whole number, at least 1",
        "trainer.devices": "a whole number, at least 1",
        "optimizer.lr": "greater than 0",
        "logger.jsonl._target_": "a subclass of Logger",
        "callbacks.replay_buffer": "a config with a _target_: a subclass of Callback",
        "task.data.n_test": "greater than or equal to 1",
    }
    assert {key: found[key].allowed for key in allowed} == allowed
    assert "callbacks/replay_buffer=off" in found["callbacks.replay_buffer"].fix


def test_a_trainer_takes_every_argument_of_lightnings_and_a_callback_can_be_removed():
    (config,) = configs("+trainer.profiler=simple", "callbacks.replay_buffer=null")
    assert config.trainer.arguments["profiler"] == "simple"
    assert "replay_buffer" not in config.callbacks and "checkpoint" in config.callbacks
    kinds = {type(callback).__name__ for callback in config.callbacks.values()}
    assert "ReplayBufferCallback" not in kinds and "AdapterCheckpoint" in kinds


def test_a_profiler_is_an_object_of_the_config():
    name = "lightning.pytorch.profilers.SimpleProfiler"
    given = (f"+trainer.profiler._target_={name}", "+trainer.profiler.filename=steps")
    (config,) = configs(*given)
    assert config.trainer.arguments["profiler"] == {"_target_": name, "filename": "steps"}
    found = problems(*given, "+trainer.profiler.fliename=a", "trainer.max_steps=0")
    assert found.keys() == {"trainer.profiler.fliename", "trainer.max_steps"}


@pytest.mark.parametrize(
    "fixes",
    [
        {"taks=arithmetic": "task?", "optmizer.lr=1": "optimizer.lr?", "optim.lr=1": "optimizer.lr?",
         "optimizer.lrr=1": "optimizer.lr?", "task=arithmetik": "task=arithmetic?",
         "callbacks/replay=off": "callbacks/replay_buffer?",
         "callbacks/replay_buffer=of": "callbacks/replay_buffer=off?",
         "experiment=paper/arithmetik": "experiment=paper/arithmetic?",
         "objective.regression.knd=x": "objective.regression.kind?", "~seeds": "seed?",
         "baseline=pppo": "baseline=ppo?", "hydra.job.chdr=true": "hydra.job.chdir?"},
        {"task=arithmetic,arithmetik": "task=arithmetic?", "optimizer.lrr=1,2": "optimizer.lr?", "-m": ""},
        {"--config-name=confg": "config?"},
    ],
)  # fmt: skip
def test_a_mistyped_key_or_choice_gets_a_suggestion(fixes):
    found = problems(*fixes)
    wanted = {line.lstrip("~").partition("=")[0]: fix for line, fix in fixes.items() if fix}
    for section in {"optmizer.lr", "optim.lr"} & wanted.keys():  # which there is not
        wanted[section.removesuffix(".lr")] = wanted.pop(section)
    assert {where: problem.fix for where, problem in found.items()} == {
        where: f"did you mean {fix}" for where, fix in wanted.items()
    }
    assert all(problem.allowed for problem in found.values())


def test_one_mistake_is_one_problem():
    found = problems("task.min_len=40")
    assert list(found) == ["task.min_len"] and found["task.min_len"].allowed == "0 to 24"
    assert list(problems("optimizer.lrr=1")) == ["optimizer.lrr"]


@pytest.mark.parametrize("betas", ["[0.9]", "[true,0.9]", "[0.9,2]"])
def test_what_an_optimizers_constructor_fails_on_is_named(betas):
    (problem,) = problems(f"optimizer.betas={betas}").values()
    assert problem.where == "optimizer" and "betas=" in problem.what


def test_a_key_of_a_group_without_a_choice():
    problem = problems("baseline.epochs=2")["baseline"]
    assert problem.what == "no option of this group is selected" and "baseline=" in problem.fix


@pytest.mark.parametrize(
    ("argv", "where", "said"),
    [
        (["seed=0,1"], "seed", "-m sweeps over them; as a single string: 'seed=\"0,1\"'"),
        (["lm.name=/a(b"], "command line: lm.name=/a(b", "'lm.name=\"/a(b\"'"),
        (["lm.name=模型"], "command line: lm.name=模型", "'lm.name=\"模型\"'"),
        (["seed"], "command line: seed", "key=value"),
        (["-m", "--cfg", "job"], "command line", "Only one of"),
        (["--config-dir", "/no/such"], "--config-dir", "not a folder"),
        (["hydra.job.chdir=perhaps"], "hydra.job.chdir", "perhaps"),
        (["seed=${nothing}"], "seed", "nothing"),
        (["objective=null"], "command line", "Config group override"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_hydra_refuses_is_a_user_error(argv, where, said):
    found = problems(*argv)
    assert list(found) == [where] and said in str(found[where])


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        # Wrong by themselves: all at once.
        (["task.min_len=30", "sampling.n_conditions=0", "callbacks.replay_buffer.probability=1",
          "callbacks.replay_buffer.seed_demonstrations=false", "task.n_demonstrations=50",
          "task.data.train_operands=[]", "task.data.rationales=/no/file.json", "lm.dtype=float8",
          "callbacks.reward_tempering.end=0", "em.rounds=-1", "seed=-1", "dry_run=perhaps",
          "objective._target_=gfn_runner.tasks.arithmetic.IntegerArithmetic"],
         "task.min_len sampling.n_conditions callbacks.replay_buffer.probability task.n_demonstrations "
         "task.data.train_operands task.data.rationales lm.dtype callbacks.reward_tempering.end em.rounds "
         "seed dry_run objective._target_"),
        (["sampling.min_temperature=3", "task=arithmetic_tool", "task.calculator=true", "seed=4294967296",
          "lm.device=cuda", "lm.quantization=4bit"],
         "sampling.min_temperature task.calculator seed lm.device lm.quantization"),
        (["task._target_=nowhere.Nothing", "seed=99999999999999999999"], "task._target_ seed"),
        (["optimizer._partial_=false", "~scheduler._partial_"], "optimizer._partial_ scheduler._partial_"),
        (["task=subjectivity", "task.answer='; so {label}.'", "task.data.train=/no/file.jsonl"],
         "task.answer task.data.train"),
        # Together.
        (["objective=vargrad", "sampling.n_samples=1", "lm.dtype=float16"], "sampling.n_samples lm.dtype"),
        (["baseline=grpo", "callbacks/replay_buffer=off", "sampling.n_samples=1"], "sampling.n_samples"),
        (["objective=joint", "sampling.n_samples=1", "task.min_len=5"], "task.min_len"),
        (["objective=joint", "objective.between=0", "task.min_len=5"], "task.min_len"),
        (["objective=subtb", "task.min_len=5"], "task.min_len"),
        (["baseline=sft", "lm.dtype=float16"], "lm.dtype"),
        (["trainer.devices=2", "trainer.strategy=fsdp", "lm.quantization=4bit"], "trainer.strategy"),
        (["task=subjectivity", "trainer.devices=2", "trainer.strategy=fsdp", "em.m_batch=15"], "em.m_batch"),
        (["task=continuation", "sampling.sft_share=0.5"], "sampling.sft_share"),
        (["task=subjectivity", "em.rounds=2", "callbacks.checkpoint=null"], "em.rounds"),
        (["sampling.sft_share=1", "trainer.max_steps=0"], "sampling.sft_share trainer.max_steps"),
        (["em=twice"], "em"),
        (["resume=/no/such/run"], "resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_impossible_values_are_refused(argv, where):
    import torch

    there = {"lm.device", "lm.quantization"} if torch.cuda.is_available() else set()
    found = problems(*argv)
    assert set(where.split()) - there <= found.keys()
    assert all(found[key].allowed or found[key].fix for key in set(where.split()) - there)


@pytest.mark.parametrize(
    "argv",
    [
        *([f"objective={name}"] for name in ("joint", "subtb", "db")),
        ["objective=tb", "task.min_len=5"],
        ["baseline=ppo", "callbacks/replay_buffer=off"],
        # The baseline has its own loss.
        ["baseline=sft", "callbacks/replay_buffer=off", "objective=vargrad"],
    ],
    ids=" ".join,
)
def test_one_sample_is_enough_for_what_compares_no_trajectories(argv):
    assert configs(*argv, "sampling.n_samples=1")[0].sampling.n_samples == 1


def test_a_zero_condition_task_is_refused(monkeypatch):
    from gfn_runner.data.samples import TaskData
    from gfn_runner.tasks.arithmetic import IntegerArithmetic

    monkeypatch.setattr(IntegerArithmetic, "load", lambda self, seed: TaskData([], []))
    assert "zero training conditions" in problems("seed=0")["task.data"].what


def test_malformed_data_is_reported_with_the_rest_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "bad.json"
    data.write_text(json.dumps([{"str_query": "Question: 1 + 2 = ? Answer:"}], indent=1))
    with pytest.raises(SystemExit) as stop:
        main([f"task.data.answers={data}", "optimizer.lr=-1"])
    assert stop.value.code == 2
    screen = capsys.readouterr().err
    assert "2 user errors; nothing was started, nothing was written" in screen
    assert "line 2" in screen and "num_sol" in screen and "optimizer.lr" in screen
    assert len(screen.splitlines()) < 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json"]


def test_a_dry_run_prints_the_whole_config_and_writes_nothing(tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.chdir(tmp_path)
    main(["dry_run=true", "task=arithmetic_tool", "objective=subtb", "objective.lam=0.9"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["task"]["calculator"] == "two_operands"
    assert shown["objective"]["lam"] == 0.9
    assert shown["callbacks"]["replay_buffer"]["capacity"] == 50
    assert not list(tmp_path.iterdir())


def imported_by(*argv: str) -> set[str]:
    code = (
        "import sys; from gfn_runner.cli.main import main\n"
        f"try: main({list(argv)})\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_a_mistyped_key_is_answered_without_the_slow_imports():
    """0.7 s of computing."""
    heavy = {"torch", "lightning", "transformers", "peft", "wandb"}
    given = ("taks=arithmetic", "optimizer.lrr=1")
    assert not (heavy | {"pydantic", "rich.syntax"}) & imported_by(*given)


@pytest.mark.slow
def test_a_dry_run_imports_no_more_than_lightning_does():
    """torchmetrics imports transformers, scipy and matplotlib."""
    assert not {"peft", "wandb", "plotly", "sklearn"} & imported_by("dry_run=true")
