"""The paper's tables at the embedded size: every command holds, and what is there is not run again."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import initialize_config_dir

from gfn_runner.commandline import CONF, check_lines

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import paper
from paper import TABLES, make, overrides, prepared

RUNS = [(table, method) for table in TABLES for method in TABLES[table].methods]


def asked(folder: Path, **more) -> argparse.Namespace:
    return argparse.Namespace(folder=folder, seeds=[0, 1, 2], jobs=1, methods=None, **more)


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


def leave(folder: Path, lines: list[str], *, finished: bool, checkpoint: bool = False) -> None:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(lines))
    if finished:
        (folder / "metrics.json").write_text("{}")
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step-1.ckpt").touch()


def test_what_is_done_is_not_done_again_and_nothing_is_deleted(tmp_path):
    lines = ["task=arithmetic", "seed=0"]
    leave(tmp_path / "seed0", lines, finished=True)
    assert prepared(tmp_path / "seed0", lines) == "finished"
    leave(tmp_path / "seed1", lines, finished=False, checkpoint=True)
    assert prepared(tmp_path / "seed1", lines) == "interrupted"
    leave(tmp_path / "seed2", lines, finished=False)
    assert prepared(tmp_path / "seed2", lines) == "missing"
    # Of other settings: a number of one run may not stand under the command of another.
    assert prepared(tmp_path / "seed0", ["task=arithmetic", "optim.lr=1", "seed=0"]) == "missing"
    aside = {path.name.split("-")[0] for path in (tmp_path / "aside").iterdir()}
    assert aside == {"seed0", "seed2"} and prepared(tmp_path / "seed9", lines) == "missing"


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    """Seed 1 fails: seed 2, behind it in the same multirun, is tried again; other methods run too."""
    calls = []

    def attempt(folder: Path, arguments, what: str) -> None:
        calls.append((folder.name, arguments))
        seeds = next(line for line in arguments if line.startswith("seed=")).partition("=")[2]
        for seed in map(int, seeds.split(",")):
            if (folder.name, seed) == ("prompting", 1):
                return
            own = overrides("random_number", folder.name, seed, asked(tmp_path))
            leave(folder / f"seed{seed}", own, finished=True)

    monkeypatch.setattr(paper, "attempt", attempt)
    make("random_number", asked(tmp_path))
    of_prompting = [a for name, a in calls if name == "prompting"]
    assert [next(line for line in a if line.startswith("seed=")) for a in of_prompting] == [
        "seed=0,1,2",
        "seed=2",
    ]
    assert all(a[0] == "-m" and "hydra.sweep.subdir=seed${seed}" in a for _, a in calls)
    done = {path.parent.parent.name for path in tmp_path.rglob("metrics.json")}
    assert done == set(TABLES["random_number"].methods)
    before = len(calls)
    make("random_number", asked(tmp_path))
    assert [name for name, _ in calls[before:]] == ["prompting"], (
        "only what is missing is run again"
    )


def test_what_learns_from_another_run_comes_after_it(tmp_path, monkeypatch):
    order = []

    def attempt(folder: Path, arguments, what: str) -> None:
        order.append(folder.name)

    monkeypatch.setattr(paper, "attempt", attempt)
    make("arithmetic", asked(tmp_path))
    assert order.index("sft_on_gflownet") > max(
        place for place, name in enumerate(order) if name != "sft_on_gflownet"
    )
    of = overrides("arithmetic", "sft_on_gflownet", 2, asked(tmp_path))
    assert f"baseline.samples_of={tmp_path}/arithmetic/gflownet/seed2" in of
