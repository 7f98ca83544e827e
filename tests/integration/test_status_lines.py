"""Long work of a run says how far it is; see also the unit tests, which turn the clock."""

from __future__ import annotations

from gfn_runner.runtime.status import ProgressLogger
from tests.runs import run


def test_all_of_a_run_that_prints_nothing_else_is_counted(tmp_path, monkeypatch):
    begun: list[tuple[ProgressLogger, bool]] = []
    enter = ProgressLogger.__enter__

    def entered(self: ProgressLogger) -> ProgressLogger:
        begun.append((self, ProgressLogger._open is None))
        return enter(self)

    monkeypatch.setattr(ProgressLogger, "__enter__", entered)
    monkeypatch.setattr(ProgressLogger, "_muted", 0)
    # A test's config shows nothing, and counts all the same.
    run(tmp_path / "run", "trainer.max_steps=2", "callbacks/report=off")
    assert [count.what for count, speaks in begun if speaks] == [
        "demonstrations by the base model",
        "rewards of demonstrations",
        "evaluation at step 2",
        "final evaluation",
        "samples beside demonstrations",
        "evaluation, base_0_shot",
    ]
    assert all(count.done == count.total > 0 for count, _ in begun)
    assert ProgressLogger._open is None and not ProgressLogger._muted
