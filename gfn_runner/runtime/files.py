"""Text files: read, written atomically, and user errors where a folder cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from gfn_runner.errors import UserError

T = TypeVar("T")
# The C loader is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LONGEST_WRITE_S = 60.0  # of a page, on a slow disk
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
# Of writes alone: a full disk, a quota, a limit of files, a disk that has become read-only.
_NO_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_REFUSED = {errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO}


def read_yaml(path: Path, kind: type[T]) -> T:
    """What a YAML file holds.

    Raises:
        ValueError: in one line, if it cannot be read or holds something else than ``kind``.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from None
    if not isinstance(found, kind):
        raise ValueError("it is empty" if found is None else f"it holds no {kind.__name__}")
    return found


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a text file atomically: a crash leaves the old file or the new one."""
    with atomic_writer(path, durable=durable) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_writer(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """A file to write to that replaces ``path`` when the context ends without an error.

    Args:
        path: what is to be replaced.
        mode: ``w`` for text, ``wb`` for bytes.
        durable: it is on the disk before it is renamed: after a power failure a new name never has old
            content. Else several processes may write the same file; the last one stays, and what a killed
            one has left unfinished is removed.
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
            unfinished.unlink(missing_ok=True)  # half a file would fill the disk for good
        raise
    if durable:
        sync_folder(path.parent)
    else:
        _remove_left(path)


def _remove_left(path: Path) -> None:
    """Remove what killed processes have left of a file; what is young may be another's that writes it now."""
    # By the clock of the disk, whatever that of this machine says.
    written = path.stat().st_mtime
    for other in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if other.stat().st_mtime < written - _LONGEST_WRITE_S:
                other.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left of durable writes; only for the folder's one writer.

    Names with a dot in front are of files that several processes write.
    """
    for left in folder.glob("[!.]*.part"):
        with contextlib.suppress(OSError):
            left.unlink()


def free_name(path: Path) -> Path:
    """The path, or with ``-2``, ``-3``, … before its suffix the first that is not taken.

    Each is asked for: a listing of a file system of the network may lack the newest.
    """
    names = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def sync(descriptor: int) -> None:
    """``fsync`` where the file system has it; raises ``OSError`` if the disk is full or broken."""
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


def check_writable(folder: Path) -> None:
    """Raise ``OSError``, naming what, if a folder or its ``run.log`` cannot be written to."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    log = folder / "run.log"
    if log.exists():
        with log.open("ab"):
            pass


@contextlib.contextmanager
def report_write_errors(folder: Path, key: str, fix: str) -> Iterator[None]:
    """Turn write errors below a folder into a ``UserError`` of a key: a full disk, no permission."""
    try:
        yield
    except Exception as raised:
        # Python's logging says of a file that it cannot open only that there is one.
        cause = raised.__cause__ if isinstance(raised, ValueError) else None
        error = cause if isinstance(cause, OSError) else raised
        where = getattr(error, "filename", None)
        place = Path(str(where or "."))
        inside = place.is_relative_to(folder) or folder.is_relative_to(place)
        number = getattr(error, "errno", None)
        refused = where is not None and inside and number in {*_REFUSED, errno.ENOENT}
        # safetensors has an error of its own, with the number in its text.
        said = re.search(r"\(os error (\d+)\)", str(error))
        if not refused and number not in _NO_WRITE and not (said and int(said[1]) in _NO_WRITE):
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError.one(
            key,
            f"{where or folder} cannot be written: {reason}",
            "a folder on a disk with space, in which you may write",
            fix,
        ) from error
