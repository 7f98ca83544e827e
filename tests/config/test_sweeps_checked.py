"""Sweeps and searches before they start: which jobs they have, and all their user errors at once."""

from __future__ import annotations

import pytest
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from gfn_runner.cli import multirun
from gfn_runner.cli.main import main
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.config.compose import CONF
from gfn_runner.runtime.sweep_record import Job, Sweep

from ..command_line import configs, problems, questions_made_once
from ..slow import mostly_slow


def started(*lines: str) -> DictConfig:
    """Hydra's config of a sweep that may begin."""
    with initialize_config_dir(version_base=None, config_dir=str(CONF)), questions_made_once():
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(lines), RunMode.MULTIRUN)
        multirun.before_multirun(config)
    return config


QUESTIONS = {"objective": 5, "temperature_and_rate": 16, "buffer": 9, "lora_rank": 4, "search": 6}


@pytest.mark.parametrize(
    "name",
    mostly_slow(sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")), ["objective"]),
)
def test_every_question_is_a_sweep_that_holds(name):
    assert len(configs(f"sweep={name}")) == QUESTIONS[name], "without -m"


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_a_run_of_a_question_goes_on_by_itself(name, tmp_path):
    lines = ["task=arithmetic", f"sweep={name}", "lm.lora.rank=4", "optimizer.lr=0.002"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(lines))
    (config,) = configs(f"resume={tmp_path}", "trainer.max_steps=7")
    assert config.optimizer.keywords["lr"] == 0.002 and config.trainer.max_steps == 7


@pytest.mark.parametrize(
    ("lines", "direction"),
    [
        (["task=arithmetic"], "maximize"),
        (["task=random_number"], "minimize"),
        (["task=random_number", "optimized_metric=log_reward"], "maximize"),
        (["task=arithmetic", "optimized_metric=phi_spread"], "minimize"),
        (["task=arithmetic", "hydra.sweeper.direction=minimize"], "minimize"),
    ],
)
def test_a_search_goes_the_way_of_its_metric(lines, direction, tmp_path):
    config = started("hydra/sweeper=search", *lines, f"output={tmp_path}")
    assert config.hydra.sweeper.direction == direction
    assert f"hydra.sweeper.direction={direction}" in config.hydra.overrides.hydra


@pytest.mark.slow
def test_a_sweep_has_a_folder_of_its_own_below_its_task_or_tasks(tmp_path):
    for lines, name in ((["seed=0,1"], "arithmetic"), (["task=arithmetic,infilling"], "tasks")):
        folders = {started(*lines, f"output={tmp_path}").hydra.sweep.dir for _ in range(2)}
        assert len(folders) == 2 and all(f"{tmp_path}/{name}/multirun/" in f for f in folders)
    folder = tmp_path / "mine"
    assert started("seed=0,1", f"hydra.sweep.dir={folder}").hydra.sweep.dir == str(folder)


@pytest.mark.slow
def test_a_search_over_tasks_that_want_different_ways_is_refused():
    given = ("sweep=search", "task=arithmetic,random_number")
    assert "exact_kl and vote_accuracy" in problems(*given)["optimized_metric"].what
    assert configs(*given, "optimized_metric=log_reward")


@pytest.mark.parametrize(
    "task", mostly_slow(["continuation", "infilling", "translation", "arithmetic"], ["infilling"])
)
def test_the_question_of_the_buffer_has_batches_from_it(task):
    few = ["task.data.n_train=20"] if task == "infilling" else []
    jobs = configs("sweep=buffer", f"task={task}", *few)
    assert {job.callbacks["replay_buffer"].probability for job in jobs} == {0.25}


def test_the_command_line_wins_over_a_question():
    jobs = configs("sweep=lora_rank", "lm.lora.rank=3,5", "seed=0,1")
    assert [(job.lm.lora.rank, job.seed) for job in jobs] == [(3, 0), (3, 1), (5, 0), (5, 1)]
    assert all(job.lm.lora.alpha == job.lm.lora.rank for job in jobs)


def test_runs_of_the_same_task_and_seed_share_their_data():
    jobs = configs("-m", "sampling.n_samples=2,5", "seed=0,1", "task.data.n_answers=9")
    one, other, again, _ = (job.data for job in jobs)
    assert one is again and one is not other and one.train != other.train


@pytest.mark.slow
def test_a_value_of_a_question_that_is_none_is_found_with_the_others():
    found = problems("sweep=buffer", "+hydra.sweeper.params.seed='0,-1'", "optimizer.lr=1e-3,-1")
    assert {"seed", "optimizer.lr"} <= found.keys()


def test_each_job_is_composed_once_and_an_invalid_one_leaves_no_folder(tmp_path, monkeypatch):
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    composed, ran = [], []
    load = ConfigLoaderImpl.load_sweep_config

    def counted(loader, config, lines):
        composed.append(lines)
        return load(loader, config, lines)

    def trained(config, folder, overrides):
        ran.append((config.seed, config.sampling.n_samples, folder))
        return 1.0

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    monkeypatch.setattr("gfn_runner.train.train_and_evaluate", trained)
    output = tmp_path / "out"
    lines = ["-m", "seed=3,4", "callbacks/report=off", f"output={output}"]
    with pytest.raises(SystemExit) as refused:
        main([*lines, "sampling.n_samples=2,1", "objective=vargrad"])
    assert refused.value.code == 2 and not ran and not output.exists()
    composed.clear()
    main([*lines, "sampling.n_samples=2,5"])
    assert len(composed) == 4
    (folder,) = output.glob("*/multirun/*/*")
    expected = [(3, 2), (3, 5), (4, 2), (4, 5)]
    assert ran == [(*values, folder / str(n)) for n, values in enumerate(expected)]
    assert [job.state for job in Sweep.read(folder).jobs] == ["ok"] * 4
    hydra = yaml.safe_load((folder / "multirun.yaml").read_text())["hydra"]
    assert hydra["runtime"]["config_sources"] and hydra["job"]["config_name"] == "config"


def test_of_a_search_both_ends_of_an_interval_are_checked():
    line = "optimizer.lr=tag(log, interval(1e-4, 1e-3))"
    jobs = configs("-m", "hydra/sweeper=search", line, "objective=joint,tb")
    assert [job.optimizer.keywords["lr"] for job in jobs] == [1e-4, 1e-3, 1e-4]
    found = problems(
        "-m", "hydra/sweeper=search", "optimizer.lr=interval(-1, 1)", "lm.lora.rank=range(0, 3)"
    )
    assert found["optimizer.lr"].what == "given -1.0" and "lm.lora.rank" in found
    found = problems("-m", "hydra/sweeper=search", "optimizer.lr=interval(1e-3, 1e-4)")
    assert found["optimizer.lr"].allowed == "interval(low, high)"


def test_a_value_takes_the_place_of_an_interval_of_the_question():
    jobs = configs(
        "sweep=search", "optimizer.lr=0.005", "+hydra.sweeper.params.seed='choice(4, 5)'"
    )
    assert {job.optimizer.keywords["lr"] for job in jobs} == {0.005}
    assert {job.seed for job in jobs} == {4, 5}


def test_an_interval_without_a_search_is_refused():
    found = problems("-m", "optimizer.lr=interval(1e-4, 1e-3)")
    assert "hydra/sweeper=search" in found["optimizer.lr"].allowed


def test_launchers_of_one_run_are_refused():
    assert "-m" in problems("hydra/launcher=local")["hydra/launcher"].fix
    assert "-m" in problems("hydra/sweeper=search")["hydra/sweeper"].fix
    found = problems("hydra/launcher=local", "seed=-1")
    assert found.keys() == {"hydra/launcher", "seed"}


def test_options_of_a_launcher_are_checked_with_the_rest():
    found = problems(
        "-m", "hydra/launcher=local", "seed=0,-1", "hydra.launcher.poll_s=0",
        "hydra.launcher.timeout_min=1:00:00",
    )  # fmt: skip
    assert {"seed", "hydra.launcher.poll_s", "hydra.launcher.timeout_min"} <= found.keys()
    found = problems("-m", "hydra/launcher=local", "hydra.launcher.n_jbos=3")
    assert found["hydra.launcher.n_jbos"].fix == "did you mean hydra.launcher.n_jobs?"
    found = problems("-m", "hydra.launcher.n_jobs=3")
    assert "hydra/launcher=basic" in found["hydra.launcher.n_jobs"].allowed


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands of SLURM; ``sbatch`` notes the arrays that it is asked about in ``asked``."""
    note = f'grep -e --array "$2" >> {tmp_path}/asked; true'
    for command in ("sbatch", "srun", "squeue", "sinfo"):
        line = note if command == "sbatch" else "echo 'gpu*|infinite'"
        (tmp_path / command).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_slurm_is_asked_about_as_many_runs_as_will_be_submitted(tmp_path):
    folder = tmp_path / "sweep"
    lines = ["-m", "hydra/launcher=slurm", f"hydra.sweep.dir={folder}"]
    seeds = "seed=0,1,2,3,4"
    configs(*lines, seeds, "optimizer.lr=1e-3,1e-4")
    configs(*lines, "hydra/sweeper=search", "optimizer.lr=interval(1e-4, 1e-3)")
    configs(*lines, "seed=0,1,2", "trainer.devices=1,2")
    Sweep(folder, ["hydra/launcher=slurm", seeds]).plan([Job(0, ["seed=0"], "0")])
    configs(*lines, seeds)  # it goes on: most of it may have finished
    configs("-m", f"resume={folder}")
    asked = [line.split("=")[1] for line in (tmp_path / "asked").read_text().split()[1::2]]
    assert asked == ["0-9%10", "0-1%2", "0-2%3", "0-2%3"]


@pytest.mark.usefixtures("slurm")
def test_other_options_of_sbatch_are_a_dictionary_of_the_launcher():
    line = "hydra.launcher.additional_parameters={mail-type: END}"
    assert len(configs("-m", "hydra/launcher=slurm", line)) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_devices_of_another_machine_are_not_looked_for_on_this_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    lines = ("-m", "lm.device=cuda", "seed=0,1")
    assert len(configs(*lines, "hydra/launcher=slurm_gpu")) == 2
    assert "lm.device" in problems(*lines)
    assert "lm.device" in problems(*lines, "hydra/launcher=local")


def test_a_sweep_is_resumed_by_its_folder(tmp_path):
    sweep = Sweep(tmp_path, ["task=arithmetic", "seed=3,4"])
    sweep.plan([Job(0, ["seed=3"], "0")])
    given = ["-m", f"resume={tmp_path}", "hydra/launcher=local"]
    assert [job.seed for job in configs(*given)] == [3, 4]
    argv = hydra_arguments(given)
    assert f"hydra.sweep.dir='{tmp_path}'" in argv
    assert not any(word.startswith("resume=") for word in argv)
    empty = tmp_path / "empty"
    assert "there is no sweep in it" in problems("-m", f"resume={empty}")["resume"].what
    assert "one run at a time" in problems("-m", f"run={tmp_path}", "mode=evaluate")["run"].allowed


def test_a_metric_without_a_name_is_refused():
    assert "optimized_metric" in problems("optimized_metric=''")
