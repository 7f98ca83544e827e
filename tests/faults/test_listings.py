"""Listings of folders that lack what is new, as those of a file system of the network may for a minute.

A file that is asked for by its name is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.budget import with_budget
from tests.faults.faulty import Faulty
from tests.faults.folders import TASKS, assert_nothing_was_lost, begin


class _Listing:
    """What ``os.scandir`` gives, of some entries."""

    def __init__(self, entries: list[Any]) -> None:
        self.entries = iter(entries)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return self.entries

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Delayed:
    """Below a folder, files that have come or were renamed in the last ``seconds`` are listed nowhere."""

    folder: Path
    seconds: float

    def __call__(self) -> None:
        scan, names = os.scandir, os.listdir

        def listed(path: str) -> bool:
            below = os.path.abspath(path).startswith(f"{self.folder}{os.sep}")
            return not below or os.lstat(path).st_ctime < time.time() - self.seconds

        def scandir(path: Any = ".") -> Any:
            with scan(path) as entries:
                return _Listing([entry for entry in entries if listed(os.path.join(path, entry))])

        def listdir(path: Any = ".") -> list[Any]:
            return [name for name in names(path) if listed(os.path.join(path, name))]

        os.scandir, os.listdir = scandir, listdir  # type: ignore[assignment]


@pytest.mark.parametrize("task", with_budget(TASKS, ["random_number"]))
def test_a_run_goes_on_from_its_newest_checkpoint_all_the_same(task, straight, tmp_path):
    """Killed when its training has ended; then no listing has anything of it, or of what comes."""
    expected, folder = straight(task), tmp_path / "run"
    saved = next(n for n, what in enumerate(expected.changes) if what.endswith("/adapter"))
    first = begin(task, folder, prepare=Faulty(folder, "killed", saved))
    assert first.ended() == -9, first.text()
    newest = max((folder / "checkpoints").glob("*.ckpt"))
    before = newest.stat().st_mtime_ns
    run = begin(task, folder, prepare=Delayed(folder, seconds=3600))
    assert run.ended() == 0, run.text()
    assert f"resumes from {newest}" in run.text()
    assert newest.stat().st_mtime_ns == before, "it was not made again"
    assert len(list(folder.glob("environment*.json"))) == 2
    assert_nothing_was_lost(folder, expected.folder)
