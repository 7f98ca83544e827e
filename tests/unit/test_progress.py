"""What a run shows while it lasts: a bar in a terminal, plain lines elsewhere, nothing if that is asked for."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

from rich.console import Console

from gfn_runner.callbacks import progress
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.progress import StepProgress
from gfn_runner.callbacks.training_log import TrainingLog

LATEST = {
    "train/loss": 12.5,
    "train/log_reward": -23.25,
    "train/phi_spread": 3.5,
    "train/reward_temperature": 0.75,
    "train/tokens_per_second": 417.0,
    "train/seconds": 2.0,
}
EVALUATED = "evaluation at step 4 (3_operands / 4_operands): accuracy 25.0 / 50.0 %"
METRICS = {"accuracy/3_operands": 0.25, "accuracy/4_operands": 0.5, "other/3_operands": 9.0}


class Shown:
    """A progress callback whose console writes into a string."""

    def __init__(self, *, terminal: bool, show: str = "auto", every: int = 2, width: int = 60):
        self.file = io.StringIO()
        self.log, evaluation = TrainingLog(), EvaluationCallback()
        evaluation.metrics = METRICS
        self.progress = StepProgress(show, every)
        self.progress.console = Console(
            file=self.file, force_terminal=terminal, width=width, color_system=None
        )
        callbacks = [self.log, evaluation, self.progress]
        self.trainer = SimpleNamespace(global_step=0, max_steps=6, callbacks=callbacks)
        self.module = SimpleNamespace(headline=("accuracy",), final=False)
        self.progress.setup(self.trainer, self.module, "fit")

    def train(self, steps: int = 6, *, evaluated_at: tuple[int, ...] = (4,), begun: int = 0) -> str:
        self.trainer.global_step = begun
        self.progress.on_train_start(self.trainer, self.module)
        for step in range(begun + 1, steps + 1):
            self.step(step)
            if step in evaluated_at:
                self.progress.on_validation_start(self.trainer, self.module)
                self.progress.on_validation_end(self.trainer, self.module)
        self.progress.on_train_end(self.trainer, self.module)
        return self.file.getvalue()

    def step(self, step: int) -> None:
        self.trainer.global_step = step
        self.log.latest = LATEST
        # Two batches a step: shown once.
        for _ in range(2):
            self.progress.on_train_batch_end(self.trainer, self.module, None, None, 0)


def test_slow_steps_have_a_line_of_their_own_after_half_a_minute():
    shown = Shown(terminal=False, every=100)
    # A step looks at the clock when it ends, and once more when it has said something.
    now = iter(range(0, 10_000, 20))
    shown.progress._clock = lambda: float(next(now))
    lines = [line for line in shown.train(evaluated_at=()).splitlines() if line.startswith("step")]
    assert len(lines) >= 3


def test_bars_silence_the_log_while_they_are_drawn(monkeypatch):
    for terminal, expected in ((False, []), (True, [1, -1])):
        changes: list[int] = []
        monkeypatch.setattr(progress, "mute_progress_lines", changes.append)
        Shown(terminal=terminal).train()
        assert changes == expected


def test_without_a_terminal_there_are_plain_lines():
    text = Shown(terminal=False).train()
    lines = text.splitlines()
    # Longer than the console is wide, and not broken; no bars, no colours, nothing drawn over.
    assert not re.search(r"[\x1b\r━]", text)
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/6", "step 2/6", "step 4/6", EVALUATED, "step 6/6",
    ]  # fmt: skip
    values = "loss 12.5  log R -23.2  φ spread 3.5  T 0.75  tokens/s 417  2.0 s/step  0 s left"
    assert lines[2] == f"step 4/6  {values}"


def test_a_run_that_goes_on_says_so_at_its_first_step():
    lines = Shown(terminal=False, every=5).train(steps=11, evaluated_at=(), begun=2).splitlines()
    assert [line.split()[1] for line in lines] == ["3/6", "5/6", "10/6"]


def test_none_says_nothing_and_bars_and_lines_can_be_forced():
    assert all(Shown(terminal=t, show="none").train() == "" for t in (True, False))
    assert "━" in Shown(terminal=False, show="bar", width=160).train()
    assert "━" not in Shown(terminal=True, show="lines").train()


def test_a_bar_is_taken_down_when_the_run_breaks():
    shown = Shown(terminal=True)
    shown.progress.on_train_start(shown.trainer, shown.module)
    shown.progress.on_exception(shown.trainer, shown.module, KeyboardInterrupt())
    assert shown.file.getvalue().rstrip("\n").endswith("\x1b[?25h"), "the cursor is back"


def test_the_time_left_is_at_the_pace_since_training_went_on(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    shown = Shown(terminal=False, every=1)
    shown.trainer.max_steps, shown.trainer.global_step = 1000, 900
    shown.progress.on_train_start(shown.trainer, shown.module)
    for step in (901, 902):
        clock[0] += 30
        shown.step(step)
    # 98 steps at half a minute each.
    assert shown.file.getvalue().splitlines()[-1].endswith("49 min left")
