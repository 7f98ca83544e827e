"""Runs of the tasks to try faults on; what has to be true of their folders after a fault and after going on."""

from __future__ import annotations

import re
from pathlib import Path

from gfn_runner.callbacks.checkpoint import checkpoint_damage
from tests.forked import Prepare, Program
from tests.same_runs import CASES, COMMON, EM, FOUR, assert_same_run

TASKS = {
    **{name: lines for name, lines in CASES.items() if f"task={name}" in lines},
    "random_number": FOUR,
    "subjectivity": EM,
}
ONE = ["random_number"]  # with a budget of 1

# One for each part of a run; what is left of a page goes with a later one; fewer or more were kept.
_OF_PARTS = re.compile(r"environment-\d+\.json|\.report\.html\.\d+\.part|step-\d+\.ckpt")


def begin(
    task: str,
    folder: Path,
    *more: str,
    prepare: Prepare | None = None,
    said: Path | None = None,
) -> Program:
    """A run in a folder of its own, which goes on where it holds one already; beside it what is printed."""
    lines = [*COMMON, *TASKS[task], "callbacks/report=live", "resume=auto", *more]
    said = said or folder.with_suffix(".txt")
    return Program(*lines, f"hydra.run.dir={folder}", said=said, prepare=prepare)


def goes_on(task: str, folder: Path, straight: Path, *more: str, what: str) -> None:
    """Go on with a run, without a fault; nothing may be missing then."""
    run = begin(task, folder, *more)
    assert run.ended() == 0, f"{what}, then:\n{run.text()}"
    assert_explained(run, what)
    assert_nothing_was_lost(folder, straight)


def assert_explained(run: Program, what: str) -> None:
    """What a program has printed is for its user."""
    assert "Traceback" not in run.text(), f"{what}:\n{run.text()}"


def assert_checkpoints_are_good(folder: Path) -> None:
    for path in folder.glob("checkpoints/*.ckpt"):
        assert checkpoint_damage(path) is None, path


def assert_nothing_was_lost(folder: Path, straight: Path) -> None:
    """Same state, same metrics, same samples, same files."""
    assert_same_run(folder, straight)
    assert _names(folder) == _names(straight)
    assert_checkpoints_are_good(folder)


def _names(folder: Path) -> set[str]:
    """Of all files, without those that depend on how often a run has begun."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not _OF_PARTS.fullmatch(Path(name).name)}
