"""What a run writes down about the code that made it."""

from __future__ import annotations

import subprocess

import pytest

from gfn_runner import environment


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
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


def test_without_a_repository_nothing_is_said(repository, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(repository / "nowhere"))
    assert environment._git() is None
