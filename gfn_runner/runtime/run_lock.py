"""Locks that allow only one process at a time to write into the folder of a run or sweep."""

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
_SECONDS = 1.0  # timeout, in case another process only checks the lock


@contextlib.contextmanager
def acquire_run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; the operating system releases it however the process ends.

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
            "a folder with no run in progress",
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
    """Return whether another process holds the lock of ``folder``."""
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


def was_released(folder: Path) -> bool:
    """Return whether the process that wrote into ``folder`` has ended, as far as this machine can tell.

    ``False`` without a lock, and if a process of another machine was killed.
    """
    path = folder / _LOCK
    if not path.is_file():
        return False
    holder = _holder(path)
    return not holder or (holder.endswith(f" on {platform.node()}") and not run_is_locked(folder))


def _file_lock(path: Path) -> FileLock:
    # On file systems without locks (Lustre without -o flock), filelock would rely on the file's existence:
    # after a crash on one node, no other node could resume. There, the recorded holder decides.
    return FileLock(path, fallback_to_soft=False)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def _is_alive(holder: str) -> bool:
    """Return whether the process named in a lock is running, as far as this machine can tell.

    A process of another machine counts as dead, so that a run can resume if its job restarts elsewhere.
    """
    found = re.fullmatch(r"process (\d+) on (.*)", holder)
    if found is None or found[2] != platform.node() or int(found[1]) == os.getpid():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # owned by another user
    return True
