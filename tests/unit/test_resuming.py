"""Which run `resume=auto` takes, from where a run goes on, and folders that take no files."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from gfn_runner.callbacks.checkpoint import DurableCheckpointIO
from gfn_runner.cli.main import main
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.errors import UserError
from gfn_runner.run import resume as resuming
from gfn_runner.run.resume import Start, cut_back, newest_unfinished, seconds_before, start_of
from gfn_runner.runtime.json_lines import read_lines, write_lines
from gfn_runner.runtime.overrides import by_itself, kept_overrides
from gfn_runner.runtime.run_lock import acquire_run_lock

# What of a run's config is looked at.
CONFIG: Any = SimpleNamespace(trains=True, total_steps=10)


def leave(folder: Path, overrides: list[str], steps: int | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    if steps is not None:
        (folder / "metrics.json").write_text(json.dumps({"run/steps": steps}))
    return folder


def test_the_newest_run_of_the_same_overrides_that_has_not_ended(tmp_path):
    lines = ["task=arithmetic", "seed=1"]
    assert newest_unfinished(tmp_path, CONFIG, lines) is None
    leave(tmp_path / "2026-01-01/10-00-00", lines)
    wanted = leave(tmp_path / "2026-01-02/09-00-00", ["seed=1", "task=arithmetic"])
    leave(tmp_path / "2026-01-02/10-00-00", ["task=arithmetic", "seed=2"])
    leave(tmp_path / "2026-01-03/10-00-00", lines, steps=10)
    (leave(tmp_path / "2026-01-04/10-00-00", lines) / "overrides.yaml").write_text("- [")
    assert newest_unfinished(tmp_path, CONFIG, lines) == wanted
    with acquire_run_lock(wanted):
        # Another process writes there. (A lock belongs to an opened file, not to a process.)
        assert newest_unfinished(tmp_path, CONFIG, lines) == tmp_path / "2026-01-01/10-00-00"
    # A finished run that was to go on further, and has not.
    further = leave(tmp_path / "2026-01-05/10-00-00", lines, steps=5)
    assert newest_unfinished(tmp_path, CONFIG, lines) == further


def test_a_baseline_that_trains_nothing_has_ended_when_it_was_evaluated(tmp_path):
    config: Any = SimpleNamespace(trains=False, total_steps=10)
    lines = ["task=arithmetic", "baseline=prompting"]
    leave(tmp_path / "2026-01-01/10-00-00", lines, steps=0)
    assert newest_unfinished(tmp_path, config, lines) is None
    cut_off = leave(tmp_path / "2026-01-02/10-00-00", lines)
    assert newest_unfinished(tmp_path, config, lines) == cut_off


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run of 10 steps that has logged five and saved three; and its config with a ``resume``."""
    monkeypatch.setattr(resuming, "_refuse_other_run", lambda config, folder: None)
    folder = leave(tmp_path / "run", ["task=arithmetic"])
    write_lines(folder / "metrics.jsonl", [{"step": step} for step in range(1, 6)])
    for step in (2, 3, 4):
        path = folder / f"checkpoints/step-{step:07d}.ckpt"
        DurableCheckpointIO().save_checkpoint({"step": step}, path)

    def config(resume: str | Path) -> Any:
        parts = {"trainer": SimpleNamespace(max_steps=10), "em": SimpleNamespace(rounds=0)}
        return SimpleNamespace(**vars(CONFIG), **parts, resume=str(resume))

    return folder, config


@pytest.mark.parametrize("resume", ["auto", "run"])
def test_where_all_checkpoints_are_damaged_a_run_is_refused_unless_it_has_ended(resume, begun):
    folder, config = begun
    for path in folder.glob("checkpoints/*.ckpt"):
        path.write_bytes(path.read_bytes()[:-50])
    (folder / "metrics.json").write_text(json.dumps({"run/steps": 10}))
    assert start_of(config("auto"), folder).finished == {"run/steps": 10}
    (folder / "metrics.json").unlink()
    logged = (folder / "metrics.jsonl").read_bytes()
    for _ in range(2):  # the second time they have their other names already
        with pytest.raises(UserError, match="all of its checkpoints, 3, are damaged"):
            start_of(config(resume), folder)
    assert (folder / "metrics.jsonl").read_bytes() == logged


def test_a_run_without_a_checkpoint_has_saved_nothing(begun, caplog):
    folder, config = begun
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="it has saved none yet"):
        start_of(config(folder), folder)
    assert start_of(config("auto"), folder) == Start()
    with caplog.at_level(logging.INFO):
        cut_back(folder, None)
    assert "nothing was saved" in caplog.text and read_lines(folder / "metrics.jsonl") == []


@pytest.mark.parametrize("ended", [True, False])
def test_a_final_evaluation_that_was_cut_off_leaves_no_line(ended, begun):
    """That of a run which had ended stays where it goes on further."""
    folder, config = begun
    final = [{"step": step, "final/accuracy": 0.5} for step in (2, 4)]
    write_lines(folder / "metrics.jsonl", [{"step": 4, "eval/accuracy": 0.5}, *final])
    if ended:
        (folder / "metrics.json").write_text(json.dumps({"run/steps": 4}))
    cut_back(folder, start_of(config(folder), folder).checkpoint)
    kept = read_lines(folder / "metrics.jsonl")
    assert kept == [{"step": 4, "eval/accuracy": 0.5}, *final[: 1 + ended]]


def test_what_a_kill_has_left_of_a_write_is_removed(begun):
    """But not what a page's writer has begun, which holds no lock, nor where the run is only looked at."""
    folder, config = begun
    left, another = folder / "samples_newest.jsonl.part", folder / ".report.html.1.part"
    for path in (left, another):
        path.write_text("half")
    start = start_of(config(folder), folder)
    assert left.exists()
    cut_back(folder, start.checkpoint)
    assert another.exists() and not left.exists()


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\xff", "can't decode"),
        (b"- [", "while parsing"),
        (b"7", "it holds no"),
    ],
)
def test_a_file_that_a_power_failure_has_emptied_is_named(name, content, said, tmp_path):
    folder = leave(tmp_path / "run", ["task=arithmetic"])
    (folder / "config.yaml").write_text("task: {}\n")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        if name == "overrides.yaml":
            hydra_arguments([f"resume={folder}"])
        else:
            start_of(SimpleNamespace(resume="auto", values={}), folder)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.where == "resume" and problem.what.startswith(f"{folder / name} is unreadable: ")
    assert said in problem.what


def test_what_is_kept_of_a_command_line():
    given = ["seed=1", "++optimizer.lr=1", "resume=auto", "hydra.run.dir=a", "hydra/launcher=slurm"]
    kept = kept_overrides([*given, "optimizer.lr=2", "dry_run=true"], "arithmetic")
    assert kept == ["task=arithmetic", "seed=1", "optimizer.lr=2"]
    assert kept_overrides(["task=a", "task=b"], "c") == ["task=b"]


def test_a_run_of_a_sweep_by_itself_is_not_the_sweep():
    lines = ["task=a", "sweep=search", "optimizer.lr=1"]
    kept = kept_overrides([*lines, "hydra.sweeper.n_trials=3"], "a")
    assert kept == [*lines, "hydra.mode=RUN"]
    assert by_itself(kept) == kept and by_itself(lines) == kept
    for other in (["task=a"], ["task=a", "sweep=null"]):
        assert by_itself(other) == other


def leave_parts(folder: Path, begun: Sequence[int], times: Sequence[int]) -> None:
    """When each start of a run began, and when its steps were logged."""
    for number, begin in zip(("", "-2", "-10"), begun, strict=True):
        (folder / f"environment{number}.json").write_text(json.dumps({"begun": begin}))
    write_lines(folder / "metrics.jsonl", [{"step": n, "time": t} for n, t in enumerate(times)])


def test_the_time_of_parts_before_is_that_up_to_their_last_kept_step(tmp_path):
    assert seconds_before(tmp_path) == 0
    leave_parts(tmp_path, (1000, 5000, 9000), (1010, 1060, 5030, 9500))
    assert seconds_before(tmp_path) == 60 + 30
    (tmp_path / "environment-2.json").write_text("{}")  # of an older version
    assert seconds_before(tmp_path) == 0
    # A clock that was set between parts makes no time.
    year = 365 * 86400
    parts = (1000 + year, 1000, 1000 + 2 * year)
    leave_parts(tmp_path, parts, (1030 + year, 1020, 1001 + 2 * year))
    assert seconds_before(tmp_path) == 30 + 20
    # A baseline that trains nothing has no log.
    (tmp_path / "metrics.jsonl").unlink()
    assert seconds_before(tmp_path) == 0


def refusal(capsys, *lines: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*lines, "experiment=tiny/smoke"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and len(said.splitlines()) < 8
    return said


@pytest.fixture
def no_texts(monkeypatch):
    """Of the texts nothing is to be known here."""
    monkeypatch.setattr("gfn_runner.config.tokenizer_checks.check_texts", lambda config: None)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
@pytest.mark.parametrize("lines", [["hydra.run.dir=/proc"], ["-m", "hydra.sweep.dir=/proc"]])
def test_a_named_folder_that_exists_and_takes_no_files(lines, no_texts, capsys):
    """Hydra would fail on the run's log, with a traceback that names neither key nor reason."""
    said = refusal(capsys, *lines)
    key = lines[-1].partition("=")[0]
    assert f"{key}: /proc cannot be written: " in said and f"fix: {key}=<another folder>" in said


@pytest.mark.parametrize("what", ["folder", "log"])
def test_a_run_to_be_resumed_that_is_read_only(what, no_texts, capsys, tmp_path, monkeypatch):
    folder = leave(tmp_path / "run", ["task=arithmetic"])
    log = folder / "run.log"
    log.touch()

    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(log))

    opens = Path.open

    def only_others(self: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        return fails() if self == log and "a" in mode else opens(self, mode, *args, **named)

    # Rights do not bind root, who may run this.
    if what == "folder":
        monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    else:
        monkeypatch.setattr(Path, "open", only_others)
    said = refusal(capsys, f"resume={folder}")
    refused = folder if what == "folder" else log
    assert f"hydra.run.dir: {refused} cannot be written: Permission denied" in said
    assert "make it writable" in said
