"""Runs that meet no fault, to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.faulty import Faulty
from tests.faults.folders import begin
from tests.runs import made_once


@dataclass(frozen=True)
class Straight:
    """A run of a task that has met no fault.

    Attributes:
        folder: its own.
        changes: of the folder, in their order: what was done, and to which file.
        seconds: that it took.
    """

    folder: Path
    changes: list[str]
    seconds: float


@pytest.fixture(scope="session")
def straight(tmp_path_factory) -> Callable[[str], Straight]:
    """By the task's name; each is made once."""

    def made(task: str) -> Straight:
        def make(folder: Path) -> None:
            faulty = Faulty(folder / "run", seen=folder / "changes")
            run = begin(task, folder / "run", prepare=faulty)
            assert run.ended() == 0, run.text()
            (folder / "seconds").write_text(str(time.monotonic() - run.begun))

        folder = made_once(tmp_path_factory, f"straight-{task}", make)
        changes = (folder / "changes").read_text().splitlines()
        return Straight(folder / "run", changes, float((folder / "seconds").read_text()))

    return made
