"""Text files that are there whole or not at all, and what is said of a folder that takes none."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from gfn_runner.errors import UserError

_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_RIGHT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place and rename it: a crash leaves the old one or the new one."""
    with replaced(path) as file:
        file.write(text)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[TextIO]:
    """A file to write to that takes the place of ``path`` in one go, behind all that was written.

    That it is on the disk before it is renamed matters where the power fails: a name may be there
    before the content is.
    """
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        yield file
        file.flush()
        sync(file.fileno())
    unfinished.replace(path)
    sync_folder(path.parent)


def sync(descriptor: int) -> None:
    """Put on the disk what was written to a file, where its file system knows how to.

    Raises:
        OSError: if the disk is full or broken: some file systems say so only now.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename survive a crash of the machine, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def try_to_write(folder: Path) -> None:
    """Make sure that a folder takes files, and its ``run.log`` lines; leaves it as it is.

    Raises:
        OSError: naming what cannot be written.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        # Of the folder, not of a file that nobody knows.
        raise OSError(error.errno, error.strerror, str(folder)) from error
    log = folder / "run.log"
    if log.exists():
        with log.open("ab"):
            pass


def tell_once(log: logging.Logger) -> None:
    """Of a log file that cannot be written say so once, without a traceback for every line.

    Args:
        log: the one whose handlers write files; they print as well.
    """
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = _teller(handler)  # type: ignore[assignment,method-assign]


def _teller(handler: logging.FileHandler) -> Callable[[logging.LogRecord], None]:
    told = False

    def tell(record: logging.LogRecord) -> None:
        nonlocal told
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(handler, record)
        elif not told:
            told = True
            place = handler.baseFilename
            print(f"{place} cannot be written ({error}); its lines stand here", file=sys.stderr)

    return tell


@contextlib.contextmanager
def writing_to(folder: Path, key: str, fix: str) -> Iterator[None]:
    """Within it, a disk that is full or refuses becomes a problem of a config key.

    Args:
        folder: that is written to.
        key: of the config that names it.
        fix: what to do then.

    Raises:
        UserError: naming file, reason and ``fix``.
    """
    try:
        yield
    except Exception as error:
        where = getattr(error, "filename", None)
        place = Path(str(where or "."))
        inside = place.is_relative_to(folder) or folder.is_relative_to(place)
        number = getattr(error, "errno", None)
        refused = where is not None and inside and number in {*_NO_RIGHT, errno.ENOENT}
        if number not in _NO_ROOM and not _says_full(error) and not refused:
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError.one(
            key,
            f"{where or folder} cannot be written: {reason}",
            "a folder with room, in which you may write",
            fix,
        ) from error


def _says_full(error: Exception) -> bool:
    """Whether another library tells of a full disk (safetensors does so in an error of its own)."""
    return f"(os error {errno.ENOSPC})" in str(error)
