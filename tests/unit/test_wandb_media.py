"""What W&B gets beside scalars, with a W&B that only takes note."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.callbacks.wandb_media import (
    WandbMedia,
    add_results,
    add_samples,
    strings,
    table_rows,
)
from gfn_runner.data.conditions import Condition
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import PolicyScores, StepOutput, Trajectories
from gfn_runner.loggers.wandb import RunLogger
from gfn_runner.loggers.wandb_run import STEP, WandbRun

INF = math.inf


def drawn(n_conditions: int, n_samples: int = 5) -> list[ConditionSamples]:
    return [
        ConditionSamples(
            Condition(f"{c}", f"prompt {c}", (), group=f"set {c % 2}"),
            (),
            [f"text {c} {n}" for n in range(n_samples)],
            [-2.0 * n - c for n in range(n_samples)],
            [-1.0] * n_samples,
        )
        for c in range(n_conditions)
    ]


def output() -> StepOutput:
    """Two strings of condition 0, one of condition 1."""
    rows = Trajectories.from_rows([[1, 2], [3], []], [[True, True], [True], []], [0, 0, 1])
    phi_BS = torch.tensor([[9.0, 9.0, 4.0], [9.0, 1.0, 9.0], [7.0, 9.0, 9.0]])
    reward_BS = torch.tensor([[9.0, 9.0, -1.0], [9.0, -2.0, 9.0], [-INF, 9.0, 9.0]])
    scores = PolicyScores(torch.zeros(3, 2), torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool))
    conditions = [Condition(key, key, ()) for key in "xy"]
    return StepOutput(conditions, rows, reward_BS, scores, phi_BS, False)


class Noted:
    """Stands for W&B's run."""

    offline, id = True, "abc"

    def __init__(self):
        self.logged, self.artifacts, self.summary = [], [], {}

    def log(self, values):
        self.logged.append(values)

    def log_artifact(self, artifact):
        self.artifacts.append(artifact)


@pytest.fixture
def noted(tmp_path) -> WandbRun:
    return WandbRun(Noted(), tmp_path)


def media(wandb_run: WandbRun | None, **options) -> tuple[WandbMedia, Any]:
    """The callback, and its trainer."""
    buffer = ReplayBuffer(tolerance=0.0)
    for token, score, step in ((1, -1.0, 0), (2, -3.0, 4)):
        buffer.add("x", Entry((token,), (True,), (0.0, score), step))
    evaluation, replay = EvaluationCallback(), ReplayBufferCallback()
    callback = WandbMedia(**options)
    evaluation.samples, replay.buffer = drawn(2), buffer
    trainer: Any = SimpleNamespace(callbacks=[evaluation, replay, callback], loggers=[])
    if wandb_run is not None:
        logger = object.__new__(RunLogger)  # W&B's own is not started
        logger.run = wandb_run
        trainer.loggers.append(logger)
    return callback, trainer


def train(callback: WandbMedia, trainer: Any, *steps: int) -> None:
    for trainer.global_step in steps:
        callback.on_train_batch_end(trainer, None, {"output": output()}, None, 0)


def test_phi_is_centred_in_its_condition():
    values = strings(output())
    assert values["phi"] == [1.5, -1.5, 0.0] and values["length"] == [2, 1, 0]
    assert values["log_reward"] == [-1.0, -2.0, -INF]


def test_a_table_has_few_rows_of_conditions_from_end_to_end_and_only_finite_numbers():
    rows = list(table_rows(drawn(100), 12, temperature=0.5))
    assert [row[1] for row in rows[::3]] == ["prompt 0", "prompt 25", "prompt 50", "prompt 75"]
    assert len(rows) == 12 and rows[1] == ["set 0", "prompt 0", "text 0 1", -2.0, -1.0, -3.0]
    assert len(list(table_rows(drawn(100), 1, 1.0))) == 1
    assert len(list(table_rows(drawn(2), 50, 1.0))) == 6
    assert list(table_rows([], 50, 1.0)) == []
    cut = ConditionSamples(Condition("x", "x", ()), (), ["a"], [-INF], [-INF])
    assert list(table_rows([cut], 5, 1.0)) == [["train", "x", "a", None, None, None]]


def test_histograms_come_at_their_steps_and_once_each(noted):
    train(*media(noted, histogram_every_n_steps=4), 1, 2, 3, 4, 4, 5, 8)
    logged = noted.run.logged
    assert [values[STEP] for values in logged] == [1, 4, 8]
    counts = {name: sum(v.histogram) for name, v in logged[1].items() if name != STEP}
    # log R = −∞ has no place in a histogram.
    expected = {"phi": 3, "log_reward": 2, "length": 3, "buffer_log_reward": 2, "buffer_age": 2}
    assert counts == {f"histogram/{name}": count for name, count in expected.items()}
    ages = logged[2]["histogram/buffer_age"]
    assert (ages.bins[0], ages.bins[-1]) == (4, 8)


def test_an_evaluation_is_a_table(noted):
    callback, trainer = media(noted)
    module = SimpleNamespace(reward_temperature=2.0, final=False)
    for trainer.global_step, module.final in ((6, False), (7, True)):
        callback.on_validation_end(trainer, module)
    first, last = noted.run.logged
    assert first.keys() == {"samples/eval", STEP} and last.keys() == {"samples/final", STEP}
    assert first["samples/eval"].data[1] == [6, "set 0", "prompt 0", "text 0 1", -2.0, -1.0, 0.0]


def test_the_end_gives_metrics_and_adapters_and_needs_no_figures(noted, tmp_path):
    for name in ("adapter", "answer_adapter/inner"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
    add_results(noted, tmp_path, {"final/a": 0.5, "final/b": math.nan}, 3)
    assert noted.run.summary == {"final/a": 0.5} and noted.run.logged == []
    kept = {a.name: list(a.manifest.entries) for a in noted.run.artifacts}
    assert kept == {"adapter-abc": ["weights"], "answer_adapter-abc": ["inner/weights"]}
    assert all(a.metadata == {"optimizer_steps": 3} for a in noted.run.artifacts)


def test_no_failure_leaves_here(noted, tmp_path, caplog, monkeypatch):
    def broken(*arguments, **named):
        raise RuntimeError("no more")

    for name in ("log", "log_artifact"):
        monkeypatch.setattr(noted.run, name, broken)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "broken.png").write_text("no picture")
    own = media(noted, histogram_every_n_steps=1)
    for step in (1, 2):
        train(*own, step)
        add_samples(noted, 9, "eval", drawn(1), step, 1.0)
        add_results(noted, tmp_path, {}, step)
    said = [record.getMessage() for record in caplog.records]
    for what in ("histograms", "tables of samples", "figures", "artifacts"):
        assert sum(f"no more {what}" in message for message in said) == 1, said
