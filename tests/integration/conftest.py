"""One finished run for the tests that only look at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import made_once, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of 4 steps; do not write into it."""
    lines = ["trainer.max_steps=4", "evaluation.posterior_draws=8"]
    make = lambda folder: run(folder, *lines, figures=True)  # noqa: E731
    return made_once(tmp_path_factory, "finished", make)
