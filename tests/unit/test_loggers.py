"""metrics.jsonl and its reader; W&B's logger, offline and by its switches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from gfn_runner import loggers
from gfn_runner.json_lines import read_metrics
from gfn_runner.loggers import JsonLinesLogger, jsonable, wandb_logger
from gfn_runner.settings import LoggerSettings

# -- lines of JSON ----------------------------------------------------------------------------------


def test_a_line_that_a_crash_has_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "tra')
    JsonLinesLogger(path).log_metrics({"train/loss": 3.0}, step=3)
    assert [record["step"] for record in read_metrics(path)] == [1, 3]


def test_lines_are_appended_and_nothing_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "time": 1.0, "train/loss": 9.0}\n')
    JsonLinesLogger(path).log_metrics({"train/loss": 2.0}, step=1)
    again = JsonLinesLogger(path)
    again.log_metrics({"train/loss": torch.tensor(1.5), "train/worst": math.inf}, step=2)
    again.log_hyperparams({"never": "written"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["train/loss"] == 9.0 and lines[2]["train/loss"] == 1.5
    assert lines[2]["train/worst"] is None and lines[2]["time"] > 1.6e9


def test_what_json_has_no_word_for():
    assert [jsonable(v) for v in (math.nan, math.inf, -math.inf)] == [None] * 3
    assert jsonable(torch.tensor(0.5)) == 0.5 and jsonable(3) == 3.0
    assert type(jsonable(torch.tensor(2))) is float


def test_a_cut_off_last_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/lo')
    assert read_metrics(path) == [{"step": 1, "train/loss": 2.0}]
    path.write_text("")
    assert read_metrics(path) == []


def test_where_a_step_is_repeated_the_later_line_wins(tmp_path):
    logger = JsonLinesLogger(tmp_path / "metrics.jsonl")
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 2.0), (3, 1.0), (4, 0.0)):
        logger.log_metrics({"train/loss": loss}, step=step)
    logger.log_metrics({"eval/accuracy": 0.5}, step=2)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 2, 3, 4]
    assert [r["train/loss"] for r in records if "train/loss" in r] == [5.0, 2.0, 1.0, 0.0]
    # Another kind of line at the same step is no repetition.
    assert [r["eval/accuracy"] for r in records if "eval/accuracy" in r] == [0.5]


# -- W&B --------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """Modes in which W&B would have been started; it is not."""
    modes: list[str] = []

    def start(options, folder, config, tags, mode):
        modes.append(mode)
        return f"logger {mode}"

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(loggers, "_start", start)
    monkeypatch.setattr(loggers, "_has_credentials", lambda: False)
    return modes


def made(mode: str = "offline"):
    return wandb_logger(LoggerSettings(wandb=mode), Path("a/b/c"), {}, ())


def test_it_is_offline_unless_told_otherwise(started):
    assert made() == "logger offline" and started == ["offline"]


def test_off_is_off(started, monkeypatch):
    assert made("off") is None
    for value in ("disabled", "off"):
        monkeypatch.setenv("WANDB_MODE", value)
        assert made() is None
    monkeypatch.setenv("WANDB_MODE", "online")
    assert made("off") is None and started == []


def test_online_without_an_account_goes_on_offline_with_a_word(started, caplog):
    assert made("online") == "logger offline" and started == ["offline"]
    assert "no W&B account" in caplog.text and "wandb sync a/b/c" in caplog.text


def test_online_with_an_account_is_online(started, monkeypatch):
    monkeypatch.setattr(loggers, "_has_credentials", lambda: True)
    assert made("online") == "logger online" and started == ["online"]


def test_wandbs_own_variable_wins_over_the_config(started, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(loggers, "_has_credentials", lambda: True)
    assert made("online") == "logger offline" and started == ["offline"]


def test_a_start_that_fails_is_tried_offline_and_then_given_up(started, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "_has_credentials", lambda: True)

    def refuse(options, folder, config, tags, mode):
        started.append(mode)
        raise OSError(f"no {mode} today\nand more")

    monkeypatch.setattr(loggers, "_start", refuse)
    assert made("online") is None and started == ["online", "offline"]
    assert "W&B does not start online (no online today)" in caplog.text
    assert "W&B does not start offline" in caplog.text and "and more" not in caplog.text


def test_a_real_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "arithmetic" / "day" / "hour"
    folder.mkdir(parents=True)
    options = LoggerSettings(project="p", group="g", tags=("mine",))
    logger = wandb_logger(options, folder, {"seed": 3}, ("arithmetic", "SubTB"))
    try:
        logger.log_metrics({"train/loss": 1.0}, step=1)
        run = logger.experiment
        assert run.name == "arithmetic/day/hour" and run.config["seed"] == 3
        assert set(run.tags) == {"mine", "arithmetic", "SubTB"} and run.group == "g"
        assert len(run.id) == 16 and run.offline
    finally:
        logger.experiment.finish()
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
