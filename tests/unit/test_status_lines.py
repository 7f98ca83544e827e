"""A line every half minute of long work, by a clock that the test turns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gfn_runner.algorithms.em import EMSettings, m_step
from gfn_runner.baselines.decoding import Decoding
from gfn_runner.baselines.exact import Exact
from gfn_runner.baselines.prompting import Prompting
from gfn_runner.baselines.resampling import Resampling
from gfn_runner.data.conditions import Condition, Term
from gfn_runner.runtime import status as status_lines
from gfn_runner.runtime.status import ProgressLogger, muted_progress_lines

from .test_baselines import drawing


@pytest.fixture
def clock(monkeypatch, caplog) -> Iterator[SimpleNamespace]:
    caplog.set_level(logging.INFO)
    turned = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(status_lines, "monotonic", lambda: turned.now)
    monkeypatch.setattr(ProgressLogger, "_last_end", float("-inf"))
    monkeypatch.setattr(ProgressLogger, "_last_line", float("-inf"))
    # A run that another test cut off may have left a bar on the screen.
    monkeypatch.setattr(ProgressLogger, "_muted", 0)
    yield turned
    assert ProgressLogger._open is None


def work(clock: SimpleNamespace, count: ProgressLogger, seconds_each: float) -> None:
    """Do all of a count, item by item."""
    with count:
        for _ in range(count.total):
            clock.now += seconds_each
            count.advance()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == status_lines.__name__]


def test_a_line_every_half_minute_says_what_is_done_and_how_long_the_rest_takes(clock, caplog):
    count = ProgressLogger("final evaluation", 10)
    count.part = "3_operands"
    work(clock, count, seconds_each=12.0)
    assert said(caplog) == [
        "final evaluation (3_operands): 3 of 10 conditions, 1 min left",
        "final evaluation (3_operands): 6 of 10 conditions, 48 s left",
        "final evaluation (3_operands): 9 of 10 conditions, 12 s left",
    ]


def test_short_counts_after_each_other_are_not_silent_together(clock, caplog):
    """Nine rows of 20 s each: none of them alone lasts for half a minute."""
    for row in range(9):
        work(clock, ProgressLogger(f"row {row}", 4), seconds_each=5.0)
    assert len(said(caplog)) == 6
    # Much later the half minute begins anew.
    clock.now += 1000
    work(clock, ProgressLogger("later", 4), seconds_each=5.0)
    assert len(said(caplog)) == 6


def test_inner_counts_other_ranks_and_bars_say_nothing(clock, caplog, monkeypatch):
    with ProgressLogger("outer", 2):
        work(clock, ProgressLogger("inner", 4), seconds_each=60.0)
    with muted_progress_lines():
        work(clock, ProgressLogger("under a bar", 4), seconds_each=60.0)
    monkeypatch.setattr(status_lines, "is_rank_zero", lambda: False)
    work(clock, ProgressLogger("rank 1", 4), seconds_each=60.0)
    assert not said(caplog)


@pytest.fixture
def counts(monkeypatch) -> list[ProgressLogger]:
    """All that are begun, in their order."""
    begun: list[ProgressLogger] = []
    enter = ProgressLogger.__enter__
    monkeypatch.setattr(ProgressLogger, "__enter__", lambda self: begun.append(self) or enter(self))
    return begun


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (Prompting(shots=(0,)), ["base_0_shot"]),
        (Decoding(decoders=("greedy", "sampling"), compute=2), ["greedy", "sampling", "sampling_x2"]),
        (Resampling(draws=(2, 4)), ["resampling"]),
        (Exact(), ["exact"]),
    ],
)  # fmt: skip
def test_rows_without_training_are_counted_to_their_end(baseline, expected, counts):
    d = drawing()
    list(baseline.rows(d))
    assert [c.what for c in counts] == [f"evaluation, {name}" for name in expected]
    assert all(c.done == c.total == len(d.conditions) for c in counts)


def test_an_m_step_is_counted_by_its_steps(counts):
    d = drawing()
    asked = [Condition("one", "ba", (Term("ba", "a."),))]
    m_step(d.lm, asked, d.rule, EMSettings(m_steps=3, m_batch=2), tool=None, seed=0)
    assert [(c.what, c.done, c.total, c.unit) for c in counts] == [("M-step 1", 3, 3, "steps")]
