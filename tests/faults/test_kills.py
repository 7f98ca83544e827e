"""SIGKILL at random moments of a run with checkpoints and evaluations, over all tasks.

`tests/integration/test_exact_resume.py` has the moments that are known to be special.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.budget import cases, seed, with_budget
from tests.faults.folders import ONE, TASKS, begin, goes_on
from tests.runs import CONF

KILLS = 1  # of each task, times the budget


def test_every_task_is_killed_here():
    assert TASKS.keys() == {path.stem for path in CONF.glob("task/*.yaml")}


def phase(folder: Path) -> str:
    """How far a run's folder says that it has come."""
    if (folder / "metrics.json").exists():
        return "after its results"
    if (folder / "adapter").exists():
        return "in the final evaluation"
    if any((folder / "checkpoints").glob("*")):
        return "after the first checkpoint began"
    logged = (folder / "metrics.jsonl").exists()
    return "in the first steps" if logged else "before the first step"


@pytest.mark.parametrize("task", with_budget(TASKS, ONE))
def test_metrics_after_kills_at_random_moments_are_those_of_a_run_without(task, straight, tmp_path):
    """A folder is killed and resumed until a run in it ends by itself; then comes the next folder."""
    expected, kills = straight(task), cases(KILLS)
    rng, moments, folders = random.Random(f"{task} {seed()}"), Counter[str](), 0
    while moments.total() < kills:
        folder, folders = tmp_path / str(folders), folders + 1
        while moments.total() < kills and begin(task, folder).killed(
            rng.uniform(0, expected.seconds)
        ):
            moments[phase(folder)] += 1
        goes_on(task, folder, expected.folder, what=f"kills of {task}")
    print(f"{task}: {moments.total()} kills, {dict(moments)}, in {folders} folders")
