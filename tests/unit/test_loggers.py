"""metrics.jsonl and its reader; scalars for W&B."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import torch

from gfn_runner.loggers.json_lines import JsonLinesLogger
from gfn_runner.loggers.wandb import RunLogger
from gfn_runner.runtime.json_lines import read_metrics


def test_a_line_that_a_crash_has_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
    JsonLinesLogger(save_dir=tmp_path).log_metrics({"train/loss": 3.0}, step=3)
    assert [record["step"] for record in read_metrics(path)] == [1, 3]


def test_lines_are_appended_and_nothing_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time": 1.0, "train/loss": 9.0}\n')
    JsonLinesLogger(save_dir=tmp_path).log_metrics({"train/loss": 2.0}, step=1)
    again = JsonLinesLogger(save_dir=tmp_path)
    again.log_metrics({"train/loss": torch.tensor(1.5), "train/worst": math.inf}, step=2)
    again.log_hyperparams({"never": "written"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["train/loss"] == 9.0 and lines[2]["train/loss"] == 1.5
    assert lines[2]["train/worst"] is None and lines[2]["time"] > 1.6e9


def test_where_a_step_is_repeated_the_later_line_wins(tmp_path):
    logger = JsonLinesLogger(save_dir=tmp_path)
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)):
        logger.log_metrics({"train/loss": loss}, step=step)
    logger.log_metrics({"eval/accuracy": 0.5}, step=2)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 2, 3, 4]
    assert [r["train/loss"] for r in records if "train/loss" in r] == [5.0, 2.0, 1.0, 0.0]
    # Another kind of line at the same step is no repetition.
    assert [r["eval/accuracy"] for r in records if "eval/accuracy" in r] == [0.5]


def test_wandb_gets_finite_scalars_with_their_step(monkeypatch, tmp_path):
    seen = []
    run = SimpleNamespace(
        log=lambda what, values, step: seen.append((what, dict(values), step)),
        run=SimpleNamespace(id="abc"),
    )
    monkeypatch.setattr("gfn_runner.loggers.wandb.start_wandb", lambda *_, **__: run)
    scalars = RunLogger(save_dir=tmp_path)
    scalars.log_metrics({"train/loss": 1.5, "train/exploration_temperature": math.nan}, step=7)
    assert seen == [("scalars", {"train/loss": 1.5}, 7)]
    assert scalars.run is run and scalars.experiment is run.run and scalars.version == "abc"
