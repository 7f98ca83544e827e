"""A run small enough for a test, of the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import initialize_config_dir

from gfn_runner.app import train_and_evaluate
from gfn_runner.cli.compose import CONF, check_lines

SMALL = [
    "experiment=tiny/smoke",
    "callbacks.progress.show=none",
    "callbacks.evaluation.baseline_shots=[0]",
    "callbacks.evaluation.final=2",
    "callbacks.evaluation.singles=1",
    "task.data.n_test=4",
    "task.data.n_answers=20",
    "task.data.n_rationales=8",
    "trainer.threads=1",
]


def run(folder: Path, *lines: str) -> Path:
    """Train and evaluate in ``folder`` as the program would."""
    overrides = [*SMALL, *lines]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(overrides)
    train_and_evaluate(config, folder, overrides)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of 4 steps; do not write into it."""
    return run(tmp_path_factory.mktemp("finished") / "run", "trainer.max_steps=4")
