"""A clock that is set back and forth by up to a year while a run is made, killed and resumed."""

from __future__ import annotations

import datetime
import importlib
import random
import time
from dataclasses import dataclass

import hydra.core.utils
import pytest

from gfn_runner.runtime import clock
from gfn_runner.runtime.overrides import OVERRIDES_FILE
from tests.budget import cases, seed, with_budget
from tests.copied_runs import assert_same
from tests.faults.folders import ONE, TASKS, assert_explained
from tests.forked import Program
from tests.runs import lines_of, metrics_of
from tests.same_runs import COMMON, logged, state_of

YEAR = 365 * 86400.0


@dataclass(frozen=True)
class Jumps:
    """The machine's clock is set anew before the process begins, and again and again while it runs."""

    seed: str

    def __call__(self) -> None:
        rng, real = random.Random(self.seed), time.time
        offset = rng.uniform(-YEAR, YEAR)

        def jumping() -> float:
            nonlocal offset
            if rng.random() < 0.2:
                offset = rng.choice([-1, 1]) * 10 ** rng.uniform(0, 7)
            return real() + offset

        class Now(datetime.datetime):
            @classmethod
            def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
                return datetime.datetime.fromtimestamp(time.time(), tz)

        time.time = jumping
        hydra.core.utils.datetime = Now  # type: ignore[attr-defined, misc]
        importlib.reload(clock)  # as a process does that begins now


@pytest.mark.slow
@pytest.mark.parametrize("task", with_budget(TASKS, ONE))
def test_durations_and_the_run_to_go_on_with_do_not_follow_the_clock(task, straight, tmp_path):
    expected, kills, parts = straight(task), cases(1), 0
    rng, lines = random.Random(f"{task} {seed()}"), [*COMMON, *TASKS[task], "resume=auto"]
    runs = tmp_path / "outputs" / task
    (runs / "2999-01-01/00-00-00").mkdir(parents=True)  # of a day to come, and of nobody's
    begun = time.monotonic()

    def begin() -> Program:
        nonlocal parts
        parts += 1
        prepare = Jumps(f"{task} {parts} {seed()}")
        said = tmp_path / "said.txt"
        return Program(*lines, f"output={tmp_path / 'outputs'}", said=said, prepare=prepare)

    for _ in range(kills):
        begin().killed(rng.uniform(0, expected.seconds))
        if list(runs.glob("*/*/metrics.json")):
            break
    if not list(runs.glob("*/*/metrics.json")):
        run = begin()
        assert run.ended() == 0, run.text()
        assert_explained(run, "clock")
    (file,) = runs.glob(f"*/*/{OVERRIDES_FILE}")  # one run, whatever its name
    folder = file.parent
    assert_same(state_of(folder), state_of(expected.folder))
    assert logged(folder) == logged(expected.folder)
    most = time.monotonic() - begun
    for record in [*lines_of(folder / "metrics.jsonl"), metrics_of(folder)]:
        for name, value in record.items():
            if "seconds" in name.split("/")[0] or name.endswith("seconds"):
                assert 0 <= value <= most, f"{name}: {value}"
    assert 0 <= metrics_of(folder)["run/minutes"] <= most / 60
    print(f"{task}: {parts} starts in {folder.parent.name}/{folder.name}")
