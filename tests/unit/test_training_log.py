"""The training log with light surroundings: what a step's record counts, and on which clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gfn_runner.callbacks import training_log
from gfn_runner.callbacks.non_finite_steps import SkipNonFiniteSteps
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.callbacks.training_log import TrainingLog
from gfn_runner.data.conditions import Condition
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.data.trajectories import PolicyScores, StepOutput
from gfn_runner.runtime.phases import Phases
from tests.tiny_models import as_trajectories


def output(*lengths: int) -> StepOutput:
    """Strings of one condition."""
    n, longest = len(lengths), max(lengths)
    rows = as_trajectories([[1] * length for length in lengths])
    rewards = torch.zeros(n, longest + 1)
    terminable = torch.ones(n, longest + 1, dtype=torch.bool)
    scores = PolicyScores(torch.zeros(n, longest), rewards, terminable)
    return StepOutput([Condition("x", "x", ())], rows, rewards, scores, rewards, False)


class Steps:
    """Drives a log through batches; ``clock`` is its time in seconds."""

    def __init__(self, monkeypatch, accumulate: int = 1):
        self.clock = 0.0
        # Of its own, so that torch and pytest keep theirs.
        monkeypatch.setattr(training_log, "time", self.time())
        self.buffer = ReplayBuffer(tolerance=0.0)
        self.log, replay = TrainingLog(), ReplayBufferCallback()
        replay.buffer = self.buffer
        self.trainer = SimpleNamespace(
            global_step=0,
            accumulate_grad_batches=accumulate,
            loggers=[],
            callback_metrics={},
            log_every_n_steps=1,
            callbacks=[replay, SkipNonFiniteSteps(), self.log],
        )
        self.module = SimpleNamespace(reward_temperature=1.0, phases=Phases())
        self.log.setup(self.trainer, self.module, "fit")
        self.log.on_train_start(self.trainer, self.module)

    def time(self) -> SimpleNamespace:
        return SimpleNamespace(
            perf_counter=lambda: self.clock, process_time=lambda: 0.5 * self.clock
        )

    def batch(self, *lengths: int, seconds: float, ends_step: bool = True) -> dict[str, float]:
        self.clock += seconds
        self.trainer.global_step += ends_step
        outputs = {"output": output(*lengths), "loss": torch.tensor(1.0)}
        self.log.on_train_batch_end(self.trainer, self.module, outputs, None, 0)
        return self.log.latest


def test_tokens_per_second_are_of_the_step_with_all_its_batches(monkeypatch):
    steps = Steps(monkeypatch, accumulate=2)
    steps.batch(3, 5, seconds=1.0, ends_step=False)
    latest = steps.batch(2, 2, seconds=3.0)
    assert latest["train/tokens_per_second"] == pytest.approx(12 / 4)
    assert (latest["train/seconds"], latest["train/cpu_seconds"]) == (4.0, 2.0)
    steps.batch(1, 1, seconds=1.0, ends_step=False)
    # Nothing of the step before is counted again, and an evaluation's time is nobody's.
    steps.clock += 100
    steps.log.on_validation_end(steps.trainer, steps.module)
    latest = steps.batch(7, 1, seconds=2.0)
    assert latest["train/tokens_per_second"] == pytest.approx(10 / 2)
    assert latest["train/cpu_seconds"] == pytest.approx(1.0), "since the evaluation's end"


def test_the_buffers_age_is_the_mean_over_its_strings(monkeypatch):
    steps = Steps(monkeypatch)
    latest = steps.batch(2, 2, seconds=1.0)
    assert latest["train/buffer_size"] == 0 and "train/buffer_age" not in latest
    for key, tokens, step in (("a", (1,), 0), ("a", (2,), 1), ("b", (1,), 2)):
        steps.buffer.add(key, Entry(tokens, (True,), (0.0, -1.0), step))
    assert steps.batch(2, 2, seconds=1.0)["train/buffer_age"] == pytest.approx((2 + 1 + 0) / 3)
    for _ in range(8):
        latest = steps.batch(2, 2, seconds=1.0)
    assert latest["train/buffer_age"] == pytest.approx((10 + 9 + 8) / 3)
    assert latest["train/buffer_size"] == 3


def test_counts_are_of_all_ranks(monkeypatch):
    monkeypatch.setattr(training_log, "all_gather", lambda value: [value, value])
    steps = Steps(monkeypatch)
    steps.buffer.add("a", Entry((1,), (True,), (0.0, -1.0), 0))
    latest = steps.batch(2, 4, seconds=2.0)
    assert latest["train/buffer_size"] == 2 and latest["train/buffer_age"] == 1
    assert latest["train/tokens_per_second"] == pytest.approx(6)


def spreads(lengths, conditions, terminable=None):
    """The spreads of one batch of different φ: ``(all states, largest, whole strings)``."""
    made = output(*lengths)
    made.trajectories.condition_B = torch.tensor(conditions)
    made.phi_BS = torch.arange(float(made.phi_BS.numel())).view_as(made.phi_BS)
    if terminable is not None:
        made.scores.terminable_BS = torch.tensor(terminable)
    found = training_log.measures(made)
    return tuple(found.get(f"phi_spread{end}") for end in ("", "_max", "_terminal"))


def test_a_condition_whose_strings_are_the_same_has_no_spread_of_phi():
    """Equal strings have one φ whatever the policy is: 0 would read as exact."""
    both, _, whole = spreads([2, 1, 2, 2], [0, 0, 5, 5])
    # φ of a row: 0 1 2 | 3 4 (5) | 6 7 8 | 9 10 11; the second condition writes one string twice.
    assert whole == pytest.approx(1.0), "2 and 4 alone"
    assert both == pytest.approx((spread(0, 1, 2, 3, 4, 5) + spread(*range(6, 12))) / 2)
    assert spreads([2, 2], [0, 0])[2] is None
    assert spreads([3], [0])[2] is None, "a single demonstration"


def spread(*phi):
    return torch.tensor(phi, dtype=torch.float64).std(correction=0).item()


def test_without_any_condition_that_can_spread_all_spreads_are_absent(monkeypatch):
    terminal_alone = [[False, False, True]] * 2
    assert spreads([2, 2], [0, 0], terminal_alone) == (None, None, None)
    assert spreads([2, 2], [0, 0], [[False, True, True]] * 2)[0] is not None
    steps = Steps(monkeypatch, accumulate=2)
    steps.batch(3, 3, seconds=1.0, ends_step=False)
    assert "train/phi_spread_terminal" not in steps.batch(2, 2, seconds=1.0)
    steps.batch(3, 3, seconds=1.0, ends_step=False)
    assert steps.batch(2, 1, seconds=1.0)["train/phi_spread_terminal"] == 0.0
