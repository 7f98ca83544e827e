"""Shared fixtures: one torch thread for every test; the model of runs; and the budget of properties and fuzz tests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from tests.budget import set_budget
from tests.tiny_models import save_first_layer

MODEL = "GFN_RUNNER_TEST_MODEL"
if MODEL not in os.environ:  # a worker has its folder from the process that has started it
    os.environ[MODEL] = tempfile.mkdtemp(prefix="gfn-runner-tests-")
    # not at the end of pytest: mutmut starts it several times in one process
    atexit.register(shutil.rmtree, os.environ[MODEL], ignore_errors=True)
    save_first_layer(Path(os.environ[MODEL]))


def pytest_addoption(parser):
    parser.addoption(
        "--budget",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="properties and fuzz tests try so many times their cases, other ones each time (make fuzz)",
    )


def pytest_configure(config):
    set_budget(config.getoption("--budget"))


@pytest.fixture(autouse=True)
def one_thread():
    """Tests share the machine; and sums of few numbers are no faster on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def slurm_commands(tmp_path, monkeypatch):
    """Puts scripts in front of all commands: ``slurm_commands(squeue="echo x")``; SLURM's others fail."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def put(**scripts: str) -> None:
        for name, script in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    put(**dict.fromkeys(("sbatch", "srun", "squeue", "sinfo", "sacct"), "exit 1"))
    return put
