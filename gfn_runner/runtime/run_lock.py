"""One process writes into a folder of a run or a sweep at a time."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gfn_runner.errors import UserError

_LOCK = ".lock"
_SECONDS = 1.0  # to wait for whoever only looks whether the folder is locked


@contextlib.contextmanager
def acquire_run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``. The system releases it when the process ends, however it ends.

    Raises:
        UserError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK
    lock = _file_lock(path)
    try:
        lock.acquire(timeout=_SECONDS)
        free = True
    except Timeout:
        free = False
    except OSError:
        free = not _is_alive(_holder(path))
    if not free:
        raise UserError.one(
            "resume",
            f"{folder} is being written by {_holder(path) or 'another process'}",
            "a folder in which no run is under way",
            "wait for it, or stop it first",
        )
    try:
        path.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            path.write_text("", encoding="utf-8")
        lock.release()


def run_is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of ``folder``."""
    path = folder / _LOCK
    if not path.is_file():
        return False
    try:
        with _file_lock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:
        return _is_alive(_holder(path))


def _file_lock(path: Path) -> FileLock:
    # Where a file system has no locks (Lustre without -o flock), filelock would go by the file's being
    # there: after a crash on one node no other node could go on. There the holder's name counts instead.
    return FileLock(path, fallback_to_soft=False)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _is_alive(holder: str) -> bool:
    """Whether a process that has written its name into a lock runs, as far as this machine can tell.

    A process of another machine counts as gone, so that a run goes on when its job begins elsewhere.
    """
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    if found is None or found[2] != platform.node() or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
