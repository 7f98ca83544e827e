"""A fault at the n-th change of a run's folder: each file opened, synced, renamed, removed, each folder made.

Killed there; or from there on, or for a while, the disk is full or read-only.
"""

from __future__ import annotations

import random

import pytest

from tests.budget import cases, seed, with_budget
from tests.faults.faulty import Faulty
from tests.faults.folders import (
    ONE,
    TASKS,
    assert_checkpoints_are_good,
    assert_explained,
    begin,
    goes_on,
)
from tests.slow import mostly_slow

FOREVER = float("inf")
# The fault, and at how many changes.
KEPT = [("killed", 1), ("full", FOREVER), ("full", 5), ("read-only", FOREVER)]
KINDS = [*KEPT, ("full", 1), ("read-only", 1)]


@pytest.mark.parametrize("kind", mostly_slow(with_budget(KINDS, KEPT), KEPT[:2]), ids=str)
@pytest.mark.parametrize("task", with_budget(TASKS, ONE))
def test_nothing_is_lost_whichever_write_meets_it(task, kind, straight, tmp_path):
    (fault, number), expected = kind, straight(task)
    changes = len(expected.changes)
    rng = random.Random(f"{task} {fault} {number} {seed()}")
    codes: dict[int, list[int]] = {}
    for first in sorted(rng.sample(range(changes), min(cases(1), changes))):
        folder, where = tmp_path / str(first), f"{fault} at change {first}"
        run = begin(task, folder, prepare=Faulty(folder, fault, first, number))
        code = run.ended()
        codes.setdefault(code, []).append(first)
        assert code in ((-9,) if fault == "killed" else (0, 2)), f"{where}: {code}\n{run.text()}"
        assert_explained(run, where)
        if code == 2:
            assert "fix: " in run.text(), f"{where}:\n{run.text()}"
        assert_checkpoints_are_good(folder)
        goes_on(task, folder, expected.folder, what=where)
    print(f"{task}, {fault} for {number}: exit codes at changes of {changes}: {codes}")
