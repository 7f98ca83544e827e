"""One of two ranks is killed at a random moment: the other one ends and says why; the run goes on later."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.budget import cases, seed, with_budget
from tests.faults.folders import assert_explained, assert_nothing_was_lost, begin
from tests.forked import Program
from tests.runs import made_once, second_rank, steps_of

TWO = ["trainer.devices=2", "trainer.max_steps=6"]
pytestmark = pytest.mark.slow


def two_ranks(folder: Path) -> Program:
    return begin("random_number", folder, *TWO)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Path:
    def make(folder: Path) -> None:
        run = two_ranks(folder)
        assert run.ended() == 0, run.text()

    return made_once(tmp_path_factory, "undisturbed", make)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("rank", with_budget([0, 1], [1]))
def test_the_other_rank_ends_and_the_run_goes_on(rank, undisturbed, tmp_path):
    rng = random.Random(f"{rank} {seed()}")
    for number in range(cases(1)):
        folder, step = tmp_path / str(number), rng.randint(1, 5)
        run = two_ranks(folder)
        while len(steps_of(folder)) < step and run.process.is_alive():
            time.sleep(0.02)
        other, first = second_rank(folder), run.process.pid
        os.kill(other if rank else first, signal.SIGKILL)
        killed = time.monotonic()
        code = run.ended(timeout=120)
        while alive(other):
            assert time.monotonic() < killed + 120, "the other rank goes on"
            time.sleep(0.1)
        seconds = time.monotonic() - killed
        if rank:
            assert code == 2 and "another rank of this run has failed" in run.text(), run.text()
            assert_explained(run, "a dead rank")
        print(f"rank {rank} killed after step {step}: the other has ended after {seconds:.0f} s")
        run = two_ranks(folder)
        assert run.ended() == 0, run.text()
        assert_nothing_was_lost(folder, undisturbed)
