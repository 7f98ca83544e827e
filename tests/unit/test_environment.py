"""What a run writes down about the code that made it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gfn_runner import train
from gfn_runner.runtime import environment


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("gfn_runner", "docs/results", "tests", "conf"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("old")
    git(tmp_path, "init")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "gfn_runner" / "environment.py"))
    return tmp_path


def test_a_run_is_of_changed_code_where_the_code_is_changed(repository):
    assert environment._git()["changed"] is False
    (repository / "gfn_runner" / "new").write_text("untracked files do not count")
    # Results that were written a minute ago make no other program of it.
    (repository / "docs/results/file").write_text("new")
    (repository / "tests/file").write_text("new")
    assert environment._git()["changed"] is False
    (repository / "conf/file").write_text("new")
    assert environment._git()["changed"] is True


@pytest.mark.parametrize("name", ["GIT_DIR", "PATH"])
def test_without_a_repository_or_git_nothing_is_said(name, repository, monkeypatch):
    monkeypatch.setenv(name, str(repository / "nowhere"))
    assert environment._git() is None


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize("given", [{}, *({name: "7"} for name in WAITING)])
def test_threads_spin_briefly_unless_the_user_has_set_how_they_wait(monkeypatch, given):
    for name in WAITING:
        monkeypatch.setenv(name, "")  # to be as it was afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment.limit_thread_spinning()
    assert not os.environ.keys() & (set(WAITING) - given.keys()), "torch has read it already"
    monkeypatch.delitem(sys.modules, "torch")
    environment.limit_thread_spinning()
    found = {name: os.environ[name] for name in WAITING if name in os.environ}
    assert found == (given or {"GOMP_SPINCOUNT": "1000"})


def test_the_program_says_how_threads_wait_before_torch_is_imported(tmp_path):
    """Seen at the moment of the import, by a torch that is put in front of the real one."""
    (tmp_path / "torch.py").write_text(
        "import os, sys\nsys.exit('spins ' + os.environ.get('GOMP_SPINCOUNT', 'unset'))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    paths = [str(tmp_path), str(Path(train.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-m", "gfn_runner", "experiment=tiny/smoke", "logger=local"],
        env=clean | {"PYTHONPATH": os.pathsep.join(paths)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "spins 1000" in done.stderr, done.stderr


def test_a_run_writes_the_largest_gpu_memory_of_its_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "all_gather", lambda own: [own, own if own is None else own + 1])
    monkeypatch.setattr(train, "seconds_before", lambda folder: 0.0)
    for gib, written in ((None, None), (2.5, 3.5)):
        monkeypatch.setattr(train, "peak_gpu_memory_gib", lambda device, gib=gib: gib)
        facts = train._run_facts(3, tmp_path, train._Clock(), 4, 4, torch.device("cpu"))
        assert "run/stopped_early_of" not in facts
        assert (facts["run/seed"], facts["run/steps"]) == (3, 4)
        assert facts.get("run/peak_gpu_memory_gib") == written
        assert facts["run/peak_memory_gib"] > 0
