"""What a forked process does to itself at its n-th change of a folder: it dies, or the disk refuses.

Python tells an audit hook of every file that it opens, renames or removes; a hook cannot be taken back, so
this is for processes of their own.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What needs no room on a full disk.
_FREE = ("os.rename", "os.remove", "os.rmdir", "os.truncate")
_CHANGES = (*_FREE, "os.mkdir")


def killed(what: str, path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full(what: str, path: str) -> None:
    if what not in _FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def read_only(what: str, path: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


FAULTS: dict[str, Callable[[str, str], None]] = {
    "killed": killed,
    "full": full,
    "read-only": read_only,
}


@dataclass(frozen=True)
class Faulty:
    """Prepares a process: see :class:`tests.forked.Program`.

    Attributes:
        folder: in which changes count.
        fault: what happens, of ``FAULTS``; ``None`` to count alone.
        first: number of the first change that it happens at, from 0.
        number: of changes that it happens at.
        seen: file that gets a line for each change: what is done, and to which file.
    """

    folder: Path
    fault: str | None = None
    first: int = 0
    number: float = float("inf")
    seen: Path | None = None

    def __call__(self) -> None:
        count, inside, sync = 0, False, os.fsync
        seen = open(self.seen, "w", buffering=1) if self.seen else None  # noqa: SIM115

        def change(what: str, path: Any) -> None:
            nonlocal count, inside
            if inside or not isinstance(path, str | bytes | os.PathLike):
                return
            name = os.path.abspath(os.fsdecode(path))
            if not name.startswith(f"{self.folder}{os.sep}"):
                return
            inside = True
            try:
                if seen is not None:
                    seen.write(f"{what} {name}\n")
                number, count = count, count + 1
                if self.fault and self.first <= number < self.first + self.number:
                    FAULTS[self.fault](what, name)
            finally:
                inside = False

        def hook(event: str, values: tuple[Any, ...]) -> None:
            if event == "open" and values[2] & _WRITES:
                change("open", values[0])
            elif event in _CHANGES:
                change(event, values[0])

        def synced(descriptor: int) -> None:
            change("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            sync(descriptor)

        sys.addaudithook(hook)
        os.fsync = synced
