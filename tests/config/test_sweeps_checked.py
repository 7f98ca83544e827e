"""Sweeps and searches before they start: which jobs they have, and every mistake of theirs at once."""

from __future__ import annotations

import pytest
import yaml

from gfn_runner.cli import compose as commandline
from gfn_runner.cli.compose import CONF, checked
from gfn_runner.errors import Problem, UserError
from gfn_runner.sweeps.record import Job, Sweep


def problems(*argv: str) -> dict[str, Problem]:
    with pytest.raises(UserError) as caught:
        checked(list(argv))
    return {problem.where: problem for problem in caught.value.problems}


QUESTIONS = {"objective": 5, "temperature_and_rate": 16, "buffer": 9, "lora_rank": 4, "search": 6}


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "sweep").glob("*.yaml")))
def test_every_question_is_a_sweep_that_holds(name):
    prepared = checked([f"sweep={name}"])
    assert prepared.multirun, "without -m"
    assert len(prepared.jobs) == QUESTIONS[name]
    assert str(prepared.parent).endswith("arithmetic/multirun")


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_a_run_of_a_question_goes_on_by_itself(name, tmp_path):
    lines = ["task=arithmetic", f"sweep={name}", "lm.lora.rank=4", "optim.lr=0.002"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(lines))
    prepared = checked([f"resume={tmp_path}", "trainer.max_steps=7"])
    assert not prepared.multirun and len(prepared.jobs) == 1
    assert prepared.jobs[0].optim.lr == 0.002 and prepared.jobs[0].trainer.max_steps == 7


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
def test_a_search_goes_the_way_of_its_metric(lines, direction):
    argv = checked(["sweep=search", *lines]).argv
    assert [line for line in argv if "direction" in line] == [
        f"hydra.sweeper.direction={direction}"
    ]


def test_a_search_over_tasks_that_want_different_ways_is_refused():
    given = ("sweep=search", "task=arithmetic,random_number")
    assert "exact_kl and vote_accuracy" in problems(*given)["optimized_metric"].what
    assert checked([*given, "optimized_metric=log_reward"]).multirun


@pytest.mark.parametrize("task", ["continuation", "infilling", "translation", "arithmetic"])
def test_the_question_of_the_buffer_has_batches_from_it(task):
    jobs = checked(["sweep=buffer", f"task={task}"]).jobs
    assert {job.callbacks.replay.probability for job in jobs} == {0.25}


def test_the_command_line_wins_over_a_question():
    jobs = checked(["sweep=lora_rank", "lm.lora.rank=3,5", "seed=0,1"]).jobs
    assert [(job.lm.lora.rank, job.seed) for job in jobs] == [(3, 0), (3, 1), (5, 0), (5, 1)]
    assert all(job.lm.lora.alpha == job.lm.lora.rank for job in jobs)


def test_a_value_of_a_question_that_is_none_is_found_with_the_others():
    found = problems("sweep=buffer", "+hydra.sweeper.params.seed='0,-1'", "optim.lr=1e-3,-1")
    assert {"seed", "optim.lr"} <= found.keys()


def test_of_a_large_sweep_every_value_is_checked():
    seeds = ",".join(map(str, range(60)))
    prepared = checked(["-m", f"seed={seeds}", "optim.lr=1e-3,1e-4"])
    assert len(prepared.jobs) == 61 and {job.seed for job in prepared.jobs} == set(range(60))
    assert "optim.lr" in problems("-m", f"seed={seeds}", "optim.lr=1e-3,1e-4,-1")


def test_of_a_search_both_ends_of_an_interval_are_checked():
    line = "optim.lr=tag(log, interval(1e-4, 1e-3))"
    jobs = checked(["-m", "hydra/sweeper=search", line, "objective=joint,tb"]).jobs
    assert [job.optim.lr for job in jobs] == [1e-4, 1e-3, 1e-4]
    found = problems(
        "-m", "hydra/sweeper=search", "optim.lr=interval(-1, 1)", "lm.lora.rank=range(0, 3)"
    )
    assert found["optim.lr"].what == "given -1.0" and "lm.lora.rank" in found


def test_a_value_takes_the_place_of_an_interval_of_the_question():
    jobs = checked(
        ["sweep=search", "optim.lr=0.005", "+hydra.sweeper.params.seed='choice(4, 5)'"]
    ).jobs
    assert {job.optim.lr for job in jobs} == {0.005} and {job.seed for job in jobs} == {4, 5}


def test_an_interval_without_a_search_is_refused():
    assert (
        "hydra/sweeper=search"
        in problems("-m", "optim.lr=interval(1e-4, 1e-3)")["optim.lr"].allowed
    )


def test_launchers_of_one_run_are_refused():
    assert "-m" in problems("hydra/launcher=local")["hydra/launcher"].fix
    assert "-m" in problems("hydra/sweeper=search")["hydra/sweeper"].fix


def test_options_of_a_launcher_are_checked_with_the_rest():
    found = problems(
        "-m", "hydra/launcher=local", "seed=0,-1", "hydra.launcher.at_onec=3", "hydra.launcher.poll_s=0",
        "hydra.launcher.timeout_min=1:00:00",
    )  # fmt: skip
    assert found["hydra.launcher.at_onec"].fix == "did you mean hydra.launcher.at_once?"
    assert found["hydra.launcher.timeout_min"].allowed == "whole minutes, e.g. 90"
    assert {"seed", "hydra.launcher.poll_s"} <= found.keys()
    assert (
        "hydra/launcher=here"
        in problems("-m", "hydra.launcher.at_once=3")["hydra.launcher.at_once"].allowed
    )


def test_slurm_is_asked_about_as_many_runs_as_will_be_submitted(tmp_path, monkeypatch):
    for command in ("srun", "squeue", "sinfo"):
        (tmp_path / command).write_text("#!/bin/sh\necho 'gpu*|infinite'\n")
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\ngrep -e --array "$2" >> {tmp_path}/asked; true\n')
    for command in ("sbatch", "srun", "squeue", "sinfo"):
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = tmp_path / "sweep"
    lines = ["-m", "hydra/launcher=slurm", f"hydra.sweep.dir={folder}"]
    monkeypatch.setattr(commandline, "_MOST_JOBS_CHECKED", 6)  # more are counted than checked
    seeds = "seed=0,1,2,3,4"
    checked([*lines, seeds, "optim.lr=1e-3,1e-4"])
    checked([*lines, "hydra/sweeper=search", "optim.lr=interval(1e-4, 1e-3)"])
    checked([*lines, "seed=0,1,2", "trainer.devices=1,2"])
    Sweep(folder, ["hydra/launcher=slurm", seeds]).plan([Job(0, ["seed=0"], "0")])
    checked([*lines, seeds])  # it goes on: most of it may have finished
    checked(["-m", f"resume={folder}"])
    asked = [line.split("=")[1] for line in (tmp_path / "asked").read_text().split()[1::2]]
    assert asked == ["0-9%10", "0-1%2", "0-2%3", "0-2%3"]


def test_devices_of_another_machine_are_not_looked_for_on_this_one(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for command in ("sbatch", "srun", "squeue", "sinfo"):
        (tmp_path / command).write_text("#!/bin/sh\necho 'gpu*|infinite'\n")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lines = ("-m", "lm.device=cuda", "seed=0,1")
    assert len(checked([*lines, "hydra/launcher=slurm_gpu"]).jobs) == 2
    assert "lm.device" in problems(*lines)
    assert "lm.device" in problems(*lines, "hydra/launcher=local")


def test_a_sweep_is_resumed_by_its_folder(tmp_path):
    sweep = Sweep(tmp_path, ["task=arithmetic", "seed=3,4"])
    sweep.plan([Job(0, ["seed=3"], "0")])
    prepared = checked(["-m", f"resume={tmp_path}", "hydra/launcher=local"])
    assert [job.seed for job in prepared.jobs] == [3, 4]
    assert prepared.parent is None and f"hydra.sweep.dir='{tmp_path}'" in prepared.argv
    assert not any(word.startswith("resume=") for word in prepared.argv)
    empty = tmp_path / "empty"
    assert "no sweep lies there" in problems("-m", f"resume={empty}")["resume"].what
    assert "one run at a time" in problems("-m", f"run={tmp_path}", "mode=evaluate")["run"].allowed


def test_a_metric_without_a_name_is_refused():
    assert "optimized_metric" in problems("optimized_metric=''")
