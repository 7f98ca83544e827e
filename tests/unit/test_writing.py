"""Files that outlive crashes and full disks: lines that wait for room, and what is renamed when it is whole."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from gfn_runner.errors import UserError
from gfn_runner.runtime.clock import steady_time
from gfn_runner.runtime.files import (
    free_name,
    report_write_errors,
    warn_once_if_unwritable,
    write_atomically,
)
from gfn_runner.runtime.json_lines import (
    LineAppender,
    filter_lines,
    read_lines,
    read_metrics,
    write_lines,
)


def no_room(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("further", [[], [{"step": 4}]], ids=["sync", "append"])
def test_lines_wait_for_room_and_none_is_lost(further, tmp_path, monkeypatch, caplog):
    """They are written with the next line, and before a checkpoint."""
    path = tmp_path / "metrics.jsonl"
    lines = LineAppender(path)
    lines.append({"step": 1})
    real = Path.open

    class Full:
        def __enter__(self) -> Full:
            return self

        __exit__ = no_room

        def write(self, text: str) -> None:
            with real(path, "a") as file:
                file.write(text[:4])  # half a line gets through

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda self, *_, **__: Full())
        lines.append({"step": 2})
        lines.append({"step": 3})
        lines.sync()
    assert read_lines(path) == [{"step": 1}], "no half line stays"
    assert len(lines.waiting) == 2 and caplog.text.count("No space left") == 1
    for record in further:
        lines.append(record)
    if not further:
        lines.sync()
    assert read_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}, *further]
    assert lines.waiting == [] and "nothing is missing" in caplog.text


@pytest.mark.parametrize("tail", [b'{"step": 2, "a": "\xc3', b"\0\0\0\0", b"\xff\xfe\x00"])
def test_a_tail_that_is_no_text_is_passed_over(tail, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(path) == [{"step": 1}]
    filter_lines(path, lambda record: True)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_a_line_that_a_crash_cut_off_is_closed_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    LineAppender(path).append({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"ste\n{"step": 2}\n'
    filter_lines(path, lambda record: record["step"] <= 1)
    assert path.read_text() == '{"step": 1}\n'
    none = tmp_path / "none.jsonl"
    filter_lines(none, lambda record: True)
    assert not none.exists() and read_lines(none) == read_metrics(none) == []


def test_a_name_is_free_whatever_a_listing_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    path, made = tmp_path / "a.json", []
    for _ in range(3):
        made.append(free_name(path))
        made[-1].touch()
    assert [found.name for found in made] == ["a.json", "a-2.json", "a-3.json"]


def test_time_goes_on_evenly_where_the_clock_is_set(monkeypatch):
    before = steady_time()
    assert abs(before - time.time()) < 3600  # the clock may have been set since the import
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= steady_time() < before + 3600


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")

    def no_room_for(self: Path, *_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as patched, pytest.raises(UserError) as caught:
        patched.setattr(Path, "open", no_room_for)
        with report_write_errors(tmp_path, "hydra.run.dir", "free some"):
            write_atomically(path, "new")
    (problem,) = caught.value.problems
    assert problem.where == "hydra.run.dir" and problem.fix == "free some"
    assert "metrics.json.part cannot be written: No space left on device" in problem.what
    assert path.read_text() == "old"


@pytest.mark.parametrize("kind", ["text", "lines"])
def test_what_is_renamed_is_on_the_disk_before(kind, tmp_path, monkeypatch):
    """A file system may have the name on the disk first: after a power failure the file is empty."""
    done: list[Any] = []
    path, replace = tmp_path / "a", Path.replace

    def fsync(descriptor: int) -> None:
        is_file = os.path.isfile(f"/proc/self/fd/{descriptor}")
        done.append(os.fstat(descriptor).st_size if is_file else "folder")

    def renamed(self: Path, target: Any) -> Path:
        done.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renamed)
    if kind == "text":
        write_atomically(path, '{"step": 1}\n')
    else:
        write_lines(path, [{"step": 1}])
    assert done == [12, "renamed", "folder"]


def test_a_file_system_that_cannot_sync_is_written_to_and_a_full_one_is_an_error(
    tmp_path, monkeypatch
):
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    number = errno.EINVAL
    write_atomically(tmp_path / "a", "old")
    number = errno.EDQUOT  # NFS finds out when it sends
    with pytest.raises(OSError, match="quota"):
        write_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_full_disk_in_the_words_of_another_library(number, tmp_path):
    """Met with a file system of 160 KiB: the adapter is written by Rust code."""
    said = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
    with pytest.raises(UserError) as caught, report_write_errors(tmp_path, "output", "free some"):
        raise SafetensorError(said)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "error", [SafetensorError("another one"), OSError(errno.ENOENT, "No such file", "/data.json")]
)
def test_other_errors_are_not_taken_for_a_full_disk(error, tmp_path):
    with pytest.raises(type(error)), report_write_errors(tmp_path / "run", "output", ""):
        raise error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_log_on_a_full_disk_is_reported_once(capsys):
    log = logging.Logger("full")
    log.addHandler(logging.FileHandler("/dev/full"))
    warn_once_if_unwritable(log)
    for number in range(3):
        log.warning("line %d", number)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "/dev/full cannot be written ([Errno 28]" in said
    # A wrong format of a line is still shown.
    log.warning("%d", "no number")
    assert "Logging error" in capsys.readouterr().err
