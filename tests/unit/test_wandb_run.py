"""W&B's run: its switches, what it is called; no failure of it is more than a line in the log."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from gfn_runner import train
from gfn_runner.loggers import wandb_run
from gfn_runner.loggers.json_lines import JsonLinesLogger
from gfn_runner.loggers.wandb import RunLogger
from gfn_runner.loggers.wandb_run import WandbRun, run_id, sweep_of

from ..runs import TINY, composed


@pytest.fixture
def started(monkeypatch):
    """Modes in which W&B would have been started; it is not."""
    modes: list[str] = []

    def start(folder, arguments, mode, finish_timeout):
        modes.append(mode)
        return SimpleNamespace(mode=mode, run=SimpleNamespace(id="abc"))

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb_run, "_start", start)
    monkeypatch.setattr(wandb_run, "_has_credentials", lambda: False)
    return modes


def made(folder: Path, mode: str = "offline"):
    return RunLogger(mode, save_dir=folder).run  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "variable", "account", "begun"),
    [
        ("offline", None, False, "offline"),
        ("online", None, True, "online"),
        ("online", None, False, "offline"),
        ("online", "offline", True, "offline"),  # W&B's own variable wins
        ("offline", "disabled", False, None),
        ("offline", "off", False, None),
    ],
)
def test_the_mode_in_which_it_starts(
    mode, variable, account, begun, started, tmp_path, monkeypatch, caplog
):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(wandb_run, "_has_credentials", lambda: account)
    run = made(tmp_path, mode)
    assert (run and run.mode) == begun
    assert started == ([begun] if begun else [])
    without = mode == "online" and not account
    assert ("no W&B account" in caplog.text and "syncs it later" in caplog.text) == without


def test_without_wandb_there_is_no_logger_for_it_whatever_the_variable_says(
    started, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "online")
    given = {"save_dir": str(tmp_path), "config": {}, "job_type": "train", "run_tags": ()}
    kinds = [
        [type(logger) for logger in composed(*TINY, f"logger={group}").make_loggers(**given)]
        for group in ("local", "wandb")
    ]
    assert kinds == [[JsonLinesLogger], [JsonLinesLogger, RunLogger]] and len(started) == 1


def test_a_start_that_fails_is_tried_offline_and_then_given_up(
    started, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(wandb_run, "_has_credentials", lambda: True)

    def refuse(folder, arguments, mode, finish_timeout):
        started.append(mode)
        raise OSError(f"no {mode} today\nand more")

    monkeypatch.setattr(wandb_run, "_start", refuse)
    assert made(tmp_path, "online") is None and started == ["online", "offline"]
    assert "W&B does not start online (no online today)" in caplog.text
    assert "W&B does not start offline" in caplog.text and "and more" not in caplog.text


@pytest.mark.parametrize("project", ["team/mine", "a:b", "50%", "x" * 129, ""])
def test_a_project_that_wandb_would_refuse(project):
    (problem,) = RunLogger.argument_problems({"project": project})
    assert problem.where == "logger.wandb.project" and "/ \\ # ? % :" in problem.allowed
    assert not list(RunLogger.argument_problems({"project": "My project (2), \u03c6" + "x" * 100}))


def test_an_id_is_kept_in_its_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    first = run_id(folder)
    assert len(first) == 16 and run_id(folder) == first
    moved = folder.rename(tmp_path / "moved")
    folder.mkdir()
    another = run_id(folder)
    assert another != first, "a new run in its place"
    assert run_id(moved) == first == run_id(moved)
    copy = shutil.copytree(moved, tmp_path / "copy")
    assert run_id(copy) not in (first, another) and run_id(moved) == first
    (copy / ".wandb_id.json").write_text("{")
    assert len(run_id(copy)) == 16


def test_a_run_belongs_to_the_multirun_whose_folder_it_is_in(tmp_path):
    alone = tmp_path / "arithmetic" / "2026-01-31" / "12-00-00"
    named, dated = tmp_path / "lr sweep", tmp_path / "arithmetic/multirun/2026-01-31/12-00-00"
    for folder in (alone, named / "0", dated / "lr=1" / "seed=2"):
        folder.mkdir(parents=True)
    (named / "multirun.yaml").touch()
    (dated / "sweep.json").touch()  # of a search, where Hydra leaves no file of its own
    assert sweep_of(alone) is None
    assert sweep_of(named / "0") == "lr sweep"
    # Two sweeps at one time of two days are two groups.
    assert sweep_of(dated / "lr=1" / "seed=2") == "2026-01-31/12-00-00"


# -- what fails -------------------------------------------------------------------------------------


class Broken:
    """A W&B whose service process has died."""

    offline, url = False, "https://example"

    def __init__(self):
        self.calls = 0

    def log(self, values):
        self.calls += 1
        raise ConnectionResetError("Connection lost\nmore")

    def finish(self, exit_code):
        raise TimeoutError("Timed out finishing run.")


def test_what_fails_is_said_once_and_not_tried_again(tmp_path, caplog):
    run = WandbRun(Broken(), tmp_path)
    for step in range(3):
        run.log("scalars", {"a": 1.0}, step)
    assert run.run.calls == 1 and len(caplog.records) == 1
    assert "no more scalars of this run (Connection lost)" in caplog.text
    run.log("histograms", {"a": 1.0}, 4)
    assert run.run.calls == 2 and len(caplog.records) == 2, "another kind is tried for itself"


def test_a_server_that_lets_one_wait_is_not_waited_for_again(tmp_path, monkeypatch, caplog):
    clock, done = [0.0], []
    monkeypatch.setattr(wandb_run, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slow(seconds):
        clock[0] += seconds
        done.append(seconds)

    online, offline = (WandbRun(SimpleNamespace(offline=o), tmp_path) for o in (False, True))
    for run in (online, offline):
        for seconds in (1, 30, 30):
            run.attempt("tables of samples", lambda seconds=seconds: slow(seconds))
    assert done == [1, 30, 1, 30, 30], "offline it is this machine that is slow"
    assert len(caplog.records) == 1 and "waited 30 s" in caplog.text


def test_an_end_that_times_out_says_what_is_missing_and_how_to_send_it(tmp_path, caplog, capsys):
    (tmp_path / "wandb" / "run-20260131_120000-abc").mkdir(parents=True)
    WandbRun(Broken(), tmp_path).finish()
    assert "did not get all of this run (Timed out finishing run.)" in caplog.text
    printed = capsys.readouterr().out
    assert f"wandb sync --include-online {tmp_path}/wandb/run-2026" in printed


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (SystemExit(143), False),  # asked to stop, or put back into a queue: saved, and it goes on
        (SystemExit(-1), False),
        (RuntimeError("a fault"), True),
        (KeyboardInterrupt(), True),  # the second Ctrl-C, which saves nothing
    ],
)
def test_an_interrupted_run_has_not_failed(error, failed, tmp_path, monkeypatch):
    ended: list[bool] = []
    logger = object.__new__(RunLogger)
    logger.run = SimpleNamespace(finish=lambda *, failed: ended.append(failed))  # type: ignore[assignment]
    trainer = SimpleNamespace(loggers=[logger], callbacks=[])

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(train, "load_model", lambda *_, **__: SimpleNamespace(device="cpu"))
    monkeypatch.setattr(train, "load_answers", lambda *_: None)
    monkeypatch.setattr(train, "make_module", lambda *_: (None, None))
    monkeypatch.setattr(train, "make_trainer", lambda *_: trainer)
    monkeypatch.setattr(train, "train_rounds", broken)
    config = MagicMock(num_threads=None, float32_matmul_precision="highest", trains=True)
    with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else type(error)):
        train._run(config, tmp_path, None, train._Clock())
    assert ended == [failed]
