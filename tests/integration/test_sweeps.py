"""Sweeps without a cluster: in this process and in several; a failure, an interruption, a restart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gfn_runner.runtime.run_lock import acquire_run_lock, run_is_locked
from gfn_runner.sweeps.launching.processes import gpus_of
from tests import runs
from tests.hearing import hear
from tests.runs import MODEL, SMALL, exit_code
from tests.tiny_models import save_model_that_ignores_padding

_started: list[int] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A sweep of a test that has failed, and its runs, end with it."""
    yield
    while _started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_started.pop(), signal.SIGKILL)


def begin(*lines: str) -> subprocess.Popen[str]:
    process = runs.start(
        "-m", *lines, env={"COLUMNS": "160"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, preexec_fn=hear,
    )  # fmt: skip
    _started.append(process.pid)
    return process


def swept(*lines: str) -> tuple[int, str]:
    process = begin(*lines)
    said, _ = process.communicate(timeout=600)
    return process.returncode, said


def states(folder: Path) -> list[str]:
    return [job["state"] for job in json.loads((folder / "sweep.json").read_text())["jobs"]]


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in runs.steps_of(folder)]


def wait(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not done():
        assert time.monotonic() < until and process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


def test_places_have_gpus_of_their_own_of_those_that_may_be_seen(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpus_of(place, 2) for place in range(2)] == [(0, 1), (2, 3)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    assert [gpus_of(place, 1) for place in range(3)] == [(4,), (5,), (7,)]
    assert gpus_of(1, 0) == ()


def test_a_run_that_fails_stops_no_other_and_alone_is_run_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    model, folder = tmp_path / "model", tmp_path / "sweep"
    save_model_that_ignores_padding(model)
    lines = [
        *SMALL,
        "trainer.max_steps=1",
        "optimized_metric=log_reward",
        f"hydra.sweep.dir={folder}",
        # Another name for each job, which has to be one still when the sweep goes on.
        "hydra.sweep.subdir=seed${seed}_${hydra:job.num}",
    ]
    assert exit_code("-m", *lines, f"lm.name={model},{MODEL}") == 1
    assert states(folder) == ["failed", "ok"]
    said = "".join(capsys.readouterr())
    assert "#0 failed: lm.name: " in said and "1 of 2 runs are ok" in said
    assert "is not supported" in (folder / "report.html").read_text()
    assert "nothing was started" not in said
    written = (folder / "seed0_1" / "metrics.json").stat().st_mtime_ns

    shutil.rmtree(model)
    shutil.copytree(MODEL, model)
    assert exit_code("-m", f"resume={folder}") == 0 and states(folder) == ["ok", "ok"]
    said = "".join(capsys.readouterr())
    assert "1 run to do, 1 already finished" in said
    assert (folder / "seed0_1" / "metrics.json").stat().st_mtime_ns == written
    first, second = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert first["value"] == second["value"] < 0, "the same model; one number was read back"
    assert (first["again"], second["again"]) == (True, False)


@pytest.mark.slow
def test_runs_at_a_time_save_when_they_are_interrupted_and_go_on(tmp_path):
    folder = tmp_path / "sweep"
    process = begin(
        *SMALL, "trainer.max_steps=80", "callbacks.evaluation.every_n_steps=0", "hydra/launcher=local",
        "seed=0,1", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    wait(process, lambda: all(steps(folder / name) for name in "01"))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and states(folder) == ["interrupted", "interrupted"], said
    before = [steps(folder / name) for name in "01"]
    assert all(len(made) < 80 for made in before)
    saved = [list((folder / name / "checkpoints").glob("*.ckpt")) for name in "01"]
    assert all(saved), "nothing is lost"

    with acquire_run_lock(folder):
        code, refused = swept(f"resume={folder}")
    assert code == 2 and "is being written by" in refused, "one process a sweep"
    assert "no run was started" in refused and "nothing was written" not in refused
    code, said = swept(f"resume={folder}")
    assert code == 0 and states(folder) == ["ok", "ok"], said
    for name, made in zip("01", before, strict=True):
        assert steps(folder / name) == list(range(1, 81))
        assert "resumes from" in (folder / name / "run.log").read_text()
        assert made == list(range(1, len(made) + 1))


@pytest.mark.slow
def test_runs_that_do_not_train_end_too_when_the_terminal_is_closed(tmp_path):
    folder = tmp_path / "sweep"
    # One that draws its final evaluation for longer than this test lasts, one that has not begun.
    process = begin(
        *SMALL, "trainer.max_steps=1", "callbacks.evaluation.every_n_steps=0", "evaluation.singles=20000",
        "hydra/launcher=local", "hydra.launcher.n_jobs=1", "seed=0,1", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    logs = lambda: [log.read_text() for log in folder.glob(".submitit/*/*.out")]  # noqa: E731
    wait(process, lambda: any("final evaluation" in log for log in logs()))
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGHUP, said
    assert states(folder) == ["interrupted", "waiting"] and "0 of 2 runs are ok" in said
    assert not run_is_locked(folder / "0"), "it has ended"
    assert not (folder / "0" / "metrics.json").exists()
