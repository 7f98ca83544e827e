"""The paper's tables at the embedded size: every command holds, and what is there is not run again."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir

from gfn_runner.config.compose import CONF, check_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import paper
from paper import TABLES, finished, make, overrides, run_seeds

RUNS = [(table, method) for table in TABLES for method in TABLES[table].methods]


def asked(folder: Path, **more) -> argparse.Namespace:
    own = {"seeds": [0, 1, 2], "jobs": 1, "methods": None, "overrides": []}
    return argparse.Namespace(folder=folder, **(own | more))


@pytest.mark.parametrize(("table", "method"), RUNS, ids=map("-".join, RUNS))
def test_every_runs_command_holds(table, method, tmp_path):
    (tmp_path / table / "gflownet" / "seed1" / "adapter").mkdir(parents=True)
    lines = overrides(table, method, 1, asked(tmp_path))
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(lines)
    assert config.seed == 1 and config.task.name == table.rstrip("_0123456789")
    assert (config.baseline is None) == (method == "gflownet")


@pytest.mark.parametrize("target", ["paper-tiny", "paper-subjectivity", "paper-random-number"])
def test_the_makefile_names_tables_that_exist(target):
    # Under `make test ARGS=…` a further make would take these arguments over.
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "ARGS"}
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "install", target],
        cwd=paper.ROOT,
        capture_output=True,
        text=True,
        env=plain,
    ).stdout
    words = shown.split()
    assert "scripts/paper.py" in words
    assert set(words[words.index("scripts/paper.py") + 1 :]) <= {"--tables", *TABLES}


def leave(folder: Path, lines: list[str], *, ended: bool = True) -> None:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(lines))
    if ended:
        (folder / "metrics.json").write_text("{}")


def test_what_is_done_is_known_and_nothing_is_deleted(tmp_path):
    lines = ["task=arithmetic", "seed=0"]
    leave(tmp_path / "seed0", lines)
    assert finished(tmp_path / "seed0", lines)
    leave(tmp_path / "seed1", lines, ended=False)
    assert not finished(tmp_path / "seed1", lines) and (tmp_path / "seed1").exists()
    assert not (tmp_path / "aside").exists()
    # Of other settings: a number of one run may not stand under the command of another.
    assert not finished(tmp_path / "seed0", ["task=arithmetic", "optimizer.lr=1", "seed=0"])
    (aside,) = (tmp_path / "aside").iterdir()
    assert aside.name.startswith("seed0-") and (aside / "metrics.json").exists()
    assert not finished(tmp_path / "seed9", lines)


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path, monkeypatch):
    calls = []

    def attempt(folder: Path, arguments, what: str, threads: int) -> None:
        calls.append((folder.name, arguments))
        for seed in (0, 1, 2):
            own = overrides("random_number", folder.name, seed, asked(tmp_path))
            fails = (folder.name, seed) == ("prompting", 1)
            if not (folder / f"seed{seed}").exists():
                leave(folder / f"seed{seed}", own, ended=not fails)

    monkeypatch.setattr(paper, "attempt", attempt)
    make("random_number", asked(tmp_path))
    assert {name for name, _ in calls} == set(TABLES["random_number"].methods)
    for _, arguments in calls:
        assert arguments[0] == "-m" and "seed=0,1,2" in arguments
        assert "hydra.sweep.subdir=seed${seed}" in arguments
    before = len(calls)
    make("random_number", asked(tmp_path))
    ((name, arguments),) = calls[before:]
    assert name == "prompting" and "seed=1" in arguments


def test_no_seed_of_other_settings_is_in_the_way(tmp_path, monkeypatch):
    """One alone left lying there would let the sweep refuse all of them, at every start."""
    calls = []
    monkeypatch.setattr(paper, "attempt", lambda folder, given, *_: calls.append(given))
    for seed in (0, 1, 2):
        leave(tmp_path / f"random_number/exact/seed{seed}", ["task=random_number", f"seed={seed}"])
    run_seeds("random_number", "exact", [0, 1, 2], asked(tmp_path))
    (arguments,) = calls
    assert "seed=0,1,2" in arguments
    assert [path.name for path in (tmp_path / "random_number/exact").iterdir()] == ["aside"]
    assert len(list((tmp_path / "random_number/exact/aside").iterdir())) == 3


def test_the_number_of_jobs_makes_no_other_runs_of_them(tmp_path):
    one, two = asked(tmp_path), asked(tmp_path, jobs=2)
    assert overrides("arithmetic", "sft", 0, one) == overrides("arithmetic", "sft", 0, two)


def test_another_model_is_one_override_for_all_runs(tmp_path):
    own = overrides("arithmetic", "sft", 0, asked(tmp_path, overrides=["lm.name=there"]))
    assert own[-2:] == ["lm.name=there", "seed=0"]


def test_a_table_without_a_report_does_not_end_the_others(tmp_path, capsys):
    folder = tmp_path / "random_number/exact/seed0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("task: {_target_: some.Task}\nseed: 0\n")
    paper.report("random_number", asked(tmp_path, write=tmp_path / "docs"))
    assert "random_number: no report" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_learns_from_another_run_comes_after_it(jobs, tmp_path, monkeypatch):
    """One after the other, too: a folder has one sweep at a time."""
    ended, busy = [], set()

    def attempt(folder: Path, arguments, *rest) -> None:
        assert folder.name not in busy
        busy.add(folder.name)
        assert folder.name != "sft_on_gflownet" or "gflownet" in ended
        time.sleep(0.05 if folder.name == "gflownet" else 0.01)
        busy.remove(folder.name)
        ended.append(folder.name)

    monkeypatch.setattr(paper, "attempt", attempt)
    make("arithmetic", asked(tmp_path, jobs=jobs))
    assert ended.count("sft_on_gflownet") == 3 and set(ended) == TABLES["arithmetic"].methods.keys()
    of = overrides("arithmetic", "sft_on_gflownet", 2, asked(tmp_path))
    assert f"baseline.samples_of={tmp_path}/arithmetic/gflownet/seed2" in of
