"""A SLURM of one node, and sweeps small enough for it; only where GFN_SLURM_TESTS=1 asks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..hearing import hear
from ..runs import ROOT, steps_of

SCRIPT = ROOT / "scripts" / "slurm_local.sh"
WAIT = 900  # seconds for anything that has to come

SMALL = [
    "experiment=tiny/smoke",
    "callbacks.progress.show=none",
    "evaluation.baseline_shots=[]",
    "callbacks.evaluation.every_n_steps=0",
    "evaluation.final=2",
    "evaluation.singles=1",
    "task.data.n_test=2",
    "task.data.n_answers=20",
    "task.data.n_rationales=8",
    "num_threads=1",
]
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=20",
    "hydra.launcher.poll_s=1",
]


@dataclass
class Sweep:
    """A sweep that is under way in a process of its own."""

    folder: Path
    process: subprocess.Popen[str]
    said: str = ""

    def ends(self) -> int:
        """Wait for its end; the exit code."""
        self.said, _ = self.process.communicate(timeout=WAIT)
        return self.process.returncode

    def jobs(self) -> list[dict[str, Any]]:
        """The record, a dict a run."""
        file = self.folder / "sweep.json"
        return json.loads(file.read_text())["jobs"] if file.exists() else []

    def steps(self, number: int) -> list[int]:
        """Optimizer steps that a run has on record, in their order."""
        return [record["step"] for record in steps_of(self.folder / str(number))]

    def trains(self, number: int, step: int = 3) -> None:
        """Wait until a run has made so many steps."""
        until(lambda: step in self.steps(number), self)

    def job_id(self, number: int) -> str:
        return next(job["job_id"] for job in self.jobs() if job["number"] == number)

    def log(self, number: int) -> str:
        return (self.folder / str(number) / "run.log").read_text()


def until(holds: Callable[[], bool], sweep: Sweep | None = None, seconds: float = WAIT) -> None:
    """Wait for something; fail with what the sweep has said if it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        ended = sweep is not None and sweep.process.poll() is not None
        if ended or time.monotonic() > deadline:
            assert sweep is not None, "it has not come"
            sweep.process.kill()
            pytest.fail(f"it has not come; the sweep says:\n{sweep.process.communicate()[0]}")
        time.sleep(0.2)


def slurm(*command: str) -> str:
    """What a command of SLURM's answers."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fields(job_id: str) -> dict[str, str]:
    """What SLURM knows of a job."""
    line = slurm("scontrol", "-o", "show", "job", job_id)
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    if os.environ.get("GFN_SLURM_TESTS") != "1":
        pytest.skip("needs a SLURM of its own: make test-slurm")
    subprocess.run([SCRIPT, "start"], check=True)
    # Nothing that may be set for a real cluster leads there.
    os.environ["SLURM_CONF"] = f"{os.environ.get('GFN_SLURM', '/tmp/gfn_slurm')}/slurm.conf"
    yield
    subprocess.run([SCRIPT, "stop"], check=True)


@pytest.fixture
def start(cluster: None, tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    """Starts a sweep of small runs on the cluster: ``start("seed=0,1")``."""
    begun = []
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "160"}

    def go(*lines: str, resume: bool = False, path: Path | None = None) -> Sweep:
        search = {} if path is None else {"PATH": f"{path}:{os.environ['PATH']}"}
        folder = tmp_path / "sweep"
        words = [f"resume={folder}"] if resume else [*SMALL, *SLURM, f"hydra.sweep.dir={folder}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "gfn_runner", "-m", *words, *lines],
            cwd=ROOT,
            env=os.environ | search | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear,
        )
        begun.append(Sweep(folder, process))
        return begun[-1]

    yield go
    for sweep in begun:
        if sweep.process.poll() is None:
            sweep.process.kill()
            sweep.process.wait()
    subprocess.run(["scancel", "--quiet", "--signal=KILL", "-u", "root"])
    subprocess.run(["scancel", "--quiet", "-u", "root"])
    until(lambda: not slurm("squeue", "-h"))
