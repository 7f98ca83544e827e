"""The paper's tables at the embedded size: every command holds, and what is there is not run again."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path

import pytest
import seed_tables
import yaml
from paper import TABLES, jobs_of, make
from seed_tables import Job, cell, finished, run_all, seed_table, write_block

from gfn_runner.report.runs import Run
from tests.runs import composed
from tests.slow import mostly_slow

RUNS = [f"{table} {method}" for table in TABLES for method in TABLES[table].methods]
KEPT = (
    "arithmetic sft_on_gflownet", "arithmetic ppo", "infilling resampling", "subjectivity_10 sft",
    "random_number exact", "continuation decoding",
)  # fmt: skip


def asked(folder: Path, **more) -> argparse.Namespace:
    own = {"seeds": [0, 1, 2], "jobs": 1, "methods": None, "overrides": []}
    return argparse.Namespace(folder=folder, **(own | more))


@pytest.mark.parametrize("run", mostly_slow(RUNS, KEPT))
def test_every_runs_command_holds(run, tmp_path):
    table, method = run.split()
    (tmp_path / table / "gflownet" / "seed1" / "adapter").mkdir(parents=True)
    (job,) = jobs_of(table, asked(tmp_path, methods=[method], seeds=[1]))
    config = composed(*job.lines)
    assert config.seed == 1 and config.task.name == table.rstrip("_0123456789")
    assert (config.baseline is None) == (method == "gflownet")


def leave(folder: Path, lines: list[str], *, ended: bool = True) -> None:
    """A run's folder as a run leaves it."""
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(lines))
    task = {"_target_": "gfn_runner.tasks.random_number.RandomNumbers"}
    config = {"task": task, "seed": int(lines[-1].partition("=")[2]), "trainer": {"max_steps": 5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if ended:
        (folder / "metrics.json").write_text('{"run/steps": 5, "final/kl/all": 0.5}')


def test_what_is_done_is_known_and_nothing_is_deleted(tmp_path):
    lines = ["task=arithmetic", "seed=0"]
    leave(tmp_path / "seed0", lines)
    assert finished(tmp_path / "seed0", lines).seed == 0
    # A key that is given twice counts as the last one does; where it lies is no setting.
    twice = ["task=arithmetic", "seed=7", "hydra.run.dir=there", "seed=0"]
    assert finished(tmp_path / "seed0", twice)
    leave(tmp_path / "seed1", ["task=arithmetic", "seed=1"], ended=False)
    assert finished(tmp_path / "seed1", ["task=arithmetic", "seed=1"]) is None
    assert (tmp_path / "seed1").exists() and not (tmp_path / "aside").exists()
    # Of other settings: a number of one run may not stand under the command of another.
    assert finished(tmp_path / "seed0", ["task=arithmetic", "optimizer.lr=1", "seed=0"]) is None
    (aside,) = (tmp_path / "aside").iterdir()
    assert aside.name.startswith("seed0-") and (aside / "metrics.json").exists()
    assert finished(tmp_path / "seed9", lines) is None
    # A run of an experiment names its task besides.
    leave(tmp_path / "seed2", ["task=arithmetic", "experiment=tiny/smoke", "seed=2"])
    assert finished(tmp_path / "seed2", ["experiment=tiny/smoke", "seed=2"])


class Program:
    """In place of ``python -m gfn_runner``: what it was called for, and what it leaves."""

    def __init__(self) -> None:
        self.fails, self.seconds = "", 0.0
        self.calls: list[str] = []
        self.ended: list[str] = []

    def __call__(self, command, **how):
        lines = [word for word in command[3:] if not word.startswith(("resume=", "hydra."))]
        folder = Path(command[-1].removeprefix("hydra.run.dir="))
        assert "resume=auto" in command and how["env"]["OMP_NUM_THREADS"].isdecimal()
        name = f"{folder.parent.name}/{folder.name}"
        self.calls.append(name)
        time.sleep(self.seconds)
        failed = name == self.fails
        if not folder.exists():
            leave(folder, lines, ended=not failed)
        self.ended.append(name)
        return subprocess.CompletedProcess(command, int(failed))


@pytest.fixture
def program(monkeypatch):
    own = Program()
    monkeypatch.setattr(seed_tables.subprocess, "run", own)
    return own


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path, program, capsys):
    program.fails = "prompting/seed1"
    make("random_number", asked(tmp_path))
    methods = TABLES["random_number"].methods
    assert sorted(program.calls) == sorted(f"{m}/seed{n}" for m in methods for n in range(3))
    assert "prompting/seed1 FAILED with exit code 1" in capsys.readouterr().out
    program.calls.clear()
    make("random_number", asked(tmp_path))
    assert program.calls == ["prompting/seed1"]


def test_runs_come_by_name_with_those_that_have_finished(tmp_path, program):
    program.fails = "b_c/seed1"
    jobs = [Job(name, ["task=random_number"], seed) for name in ("a", "b, c") for seed in (0, 1)]
    runs = dict(run_all(jobs, tmp_path, at_once=2))
    seeds = {name: [run.seed for run in own] for name, own in runs.items()}
    assert seeds == {"a": [0, 1], "b, c": [0]}
    assert seed_table(runs, {"KL": "final/kl/all", "none": "final/none"}) == [
        "|  | KL | none |",
        "|---|---|---|",
        "| a | 0.50 ± 0.00 |  |",
        "| b, c | 0.50 |  |",
    ]


def test_a_mean_has_half_its_t_interval_and_shares_are_in_percent(tmp_path):
    runs = [Run(tmp_path, {}, {"final/x_share/all": v, "final/x/all": v}) for v in (0.1, 0.2, 0.3)]
    # sd 0.1, three seeds, t of 2 degrees of freedom 4.3027.
    assert cell("final/x_share/all", runs) == "20.0 ± 24.8"
    assert cell("final/x/all", runs) == "0.20 ± 0.25"
    assert cell("final/x/all", [*runs, Run(tmp_path, {}, {})]) == ""


def test_a_block_is_put_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    write_block(page, "a", [r"new \1", ""])
    assert page.read_text() == "before\n<!-- a -->\nnew \\1\n\n<!-- /a -->\nafter\n"
    with pytest.raises(SystemExit, match="lacks the marks <!-- b -->"):
        write_block(page, "b", [])


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_learns_from_another_run_comes_after_it(jobs, tmp_path, program):
    program.seconds = 0.01
    make("arithmetic", asked(tmp_path, jobs=jobs))
    learns = [name for name in program.calls if name.startswith("sft_on_gflownet/")]
    assert len(learns) == 3 and program.calls[-3:] == learns
    assert set(program.ended[:-3]) == set(program.calls[:-3])
    *_, job = jobs_of("arithmetic", asked(tmp_path, methods=["sft_on_gflownet"]))
    assert f"baseline.samples_of={tmp_path}/arithmetic/gflownet/seed2" in job.lines
