"""Text files: reading, atomic writing, and user errors for folders that are not writable."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from gfn_runner.errors import UserError

T = TypeVar("T")
# The C loader is ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_WRITE_S = 60.0  # seconds, for a page on a slow disk
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Errors that only writes raise: disk full, quota, file size limit, disk turned read-only.
_NO_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


def read_yaml(path: Path, kind: type[T]) -> T:
    """Read a YAML file.

    Raises:
        ValueError: with a one-line message, if it cannot be read or does not contain a ``kind``.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None
    if not isinstance(found, kind):
        raise ValueError("it is empty" if found is None else f"it holds no {kind.__name__}")
    return found


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file atomically: a crash leaves either the old or the new file."""
    with atomic_writer(path, durable=durable) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_writer(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces ``path`` when the context exits without an error.

    Args:
        path: file to replace.
        mode: ``w`` for text, ``wb`` for bytes.
        durable: flush to disk before renaming, so that a power failure never leaves old content under a
            new name. Otherwise several processes may write the same file: the last one wins, and files
            left unfinished by killed processes are removed.
    """
    name = f"{path.name}.part" if durable else f".{path.name}.{os.getpid()}.part"
    unfinished = path.with_name(name)
    try:
        with unfinished.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if durable:
                file.flush()
                sync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # an incomplete file would occupy the disk forever
        raise
    if durable:
        sync_folder(path.parent)
    else:
        _remove_left(path)


def _remove_left(path: Path) -> None:
    """Remove unfinished files of killed processes; recent ones may belong to a process still writing."""
    # Compare by the file system's clock, independent of this machine's.
    written = path.stat().st_mtime
    for other in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if other.stat().st_mtime < written - _LONGEST_WRITE_S:
                other.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove unfinished durable writes of a killed process; call it only as the folder's sole writer.

    Names with a leading dot are left alone: they belong to files that several processes write.
    """
    for left in folder.glob("[!.]*.part"):
        with contextlib.suppress(OSError):
            left.unlink()


def free_name(path: Path) -> Path:
    """Return the path, or the first free one with ``-2``, ``-3``, … before the suffix.

    Every candidate is checked, since a directory listing on a network file system may be outdated.
    """
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def sync(descriptor: int) -> None:
    """Call ``fsync`` if the file system supports it; raise ``OSError`` if the disk is full or broken."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename survive a crash of the machine, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Raise ``OSError``, naming the path, if a folder or its ``run.log`` is not writable."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    log = folder / "run.log"
    if log.exists():
        with log.open("ab"):
            pass


def warn_once_if_unwritable(log: logging.Logger) -> None:
    """Warn only once that a log file cannot be written, instead of printing a traceback per line."""
    for handler in log.handlers:
        if isinstance(handler, logging.FileHandler):
            handle = partial(_handle_error, handler, [])
            handler.handleError = handle  # type: ignore[method-assign]


def _handle_error(
    handler: logging.FileHandler, warned: list[bool], record: logging.LogRecord
) -> None:
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
    elif not warned:
        warned.append(True)
        print(f"{handler.baseFilename} cannot be written ({error})", file=sys.stderr)


@contextlib.contextmanager
def report_write_errors(folder: Path, key: str, fix: str) -> Iterator[None]:
    """Turn write errors below a folder (full disk, no permission) into a ``UserError`` for a config key."""
    try:
        yield
    except Exception as raised:
        # logging.config hides the error of a file that it cannot open in the cause of a ValueError.
        cause = raised.__cause__ if isinstance(raised, ValueError) else None
        error = cause if isinstance(cause, OSError) else raised
        where = getattr(error, "filename", None)
        place = Path(str(where or "."))
        inside = place.is_relative_to(folder) or folder.is_relative_to(place)
        number = getattr(error, "errno", None)
        refused = where is not None and inside and number in {*_REFUSED, errno.ENOENT}
        # safetensors raises its own exception, with the error number in the message.
        said = re.search(r"\(os error (\d+)\)", str(error))
        if not refused and number not in _NO_WRITE and not (said and int(said[1]) in _NO_WRITE):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError.one(
            key,
            f"{where or folder} cannot be written: {reason}",
            "a writable folder on a disk with free space",
            fix,
        ) from error
