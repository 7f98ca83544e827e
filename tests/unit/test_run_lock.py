"""One process a folder: the lock, its release after a crash, and file systems without locks."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from gfn_runner.errors import UserError
from gfn_runner.runtime.run_lock import acquire_run_lock, run_is_locked


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path\n"
        "from gfn_runner.runtime.run_lock import acquire_run_lock\n"
        "with acquire_run_lock(Path(sys.argv[1])): print('locked', flush=True); time.sleep(99)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"locked\n"
    assert run_is_locked(folder)
    with pytest.raises(UserError) as caught, acquire_run_lock(folder):
        pytest.fail("locked twice")
    assert f"is being written by process {other.pid} on" in str(caught.value)
    other.kill()
    other.wait()
    until = time.monotonic() + 10
    while run_is_locked(folder) and time.monotonic() < until:
        time.sleep(0.05)
    with acquire_run_lock(folder):
        assert run_is_locked(folder)
        with pytest.raises(UserError), acquire_run_lock(folder):
            pytest.fail("locked twice in one process")
    assert not run_is_locked(folder) and not run_is_locked(tmp_path / "none")


def test_a_process_that_only_looks_is_waited_for(tmp_path):
    looking = FileLock(tmp_path / ".lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.3, looking.release).start()
    with acquire_run_lock(tmp_path):
        assert run_is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_the_name_in_the_file_counts_on_its_own_machine(
    tmp_path, monkeypatch, number
):
    def none(file: int, kind: int) -> None:
        raise OSError(number, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    other = subprocess.Popen(["sleep", "99"])
    lock = Path(tmp_path / ".lock")
    lock.write_text(f"process {other.pid} on {platform.node()}\n")
    assert run_is_locked(tmp_path)
    with (
        pytest.raises(UserError, match=f"written by process {other.pid}"),
        acquire_run_lock(tmp_path),
    ):
        pytest.fail("locked twice")
    other.kill()
    other.wait()
    for left in (f"process {other.pid} on {platform.node()}", f"process {os.getppid()} on far"):
        lock.write_text(left + "\n")
        assert not run_is_locked(tmp_path)
    with acquire_run_lock(tmp_path):
        assert lock.read_text() == f"process {os.getpid()} on {platform.node()}\n"
    assert not run_is_locked(tmp_path)
