"""JSON lines files: written atomically or appended to, and readable after a crash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gfn_runner.runtime.files import atomic_writer

logger = logging.getLogger(__name__)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_writer(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file written by :func:`write_lines`; return an empty list if it does not exist."""
    if not path.is_file():
        return []
    # JSON does not escape U+2028 and similar characters: only a line feed ends a record.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [loads(line) for line in lines if line]


def loads(text: str | bytes) -> Any:
    """Parse JSON from a file that may have been damaged.

    Input that is nested too deeply raises ``ValueError``, like any invalid JSON; an integer with more digits
    than fit into 64 bits becomes a float, possibly infinite.
    """
    try:
        return json.loads(
            text, parse_int=lambda digits: (int if len(digits) < 19 else float)(digits)
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        ValueError: if it cannot be read or contains anything else.
    """
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(str(error)) from None
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def object_or_empty(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object; return an empty one if that fails."""
    with contextlib.suppress(ValueError):
        return read_object(path)
    return {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a ``metrics.jsonl``; if a resumed run repeats a step, the later line wins.

    A last line truncated by a crash is skipped. Returns an empty list if the file does not exist.
    """
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in _whole_lines(path):
        kinds = sorted({name.split("/")[0] for name in record})
        records[(record["step"], *kinds)] = record
    return sorted(records.values(), key=lambda record: record["step"])


def is_logged(path: Path, step: int, prefix: str) -> bool:
    """Return whether a ``metrics.jsonl`` has an entry of the step whose name starts with the prefix."""
    return any(
        record["step"] == step and any(name.startswith(prefix) for name in record)
        for record in read_metrics(path)
    )


def filter_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Keep only the complete lines that ``wanted`` accepts, atomically."""
    if path.is_file():
        write_lines(path, filter(wanted, list(_whole_lines(path))))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    return records_of_steps(path.read_bytes() if path.is_file() else b"")


def records_of_steps(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records that have a step; skip lines that a crash truncated or corrupted."""
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):  # invalid JSON or UTF-8
            record = loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                yield record


class LineAppender:
    """Appends lines to a file, retrying lines that could not be written (full disk) with the next ones.

    Attributes:
        waiting: lines not yet written to the file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[str] = []
        self._ends_clean = self._warned = False

    def append(self, record: dict[str, Any]) -> None:
        """Write the waiting lines and a record; never raise ``OSError``."""
        self.waiting.append(json.dumps(record) + "\n")
        self._write_waiting()

    def sync(self) -> None:
        """Retry the waiting lines and flush the file to disk."""
        if self.waiting:
            self._write_waiting()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _write_waiting(self) -> None:
        try:
            self._write("".join(self.waiting))
        except OSError as error:
            if not self._warned:
                logger.warning(
                    "%s cannot be written (%s); its lines are kept and retried", self.path, error
                )
            self._warned = True
            return
        if self._warned:
            logger.warning("%s can be written again; nothing is missing", self.path)
        self.waiting, self._warned = [], False

    def _write(self, text: str) -> None:
        before = self.path.stat().st_size if self.path.is_file() else 0
        if not self._ends_clean and before and self.path.read_bytes()[-1:] != b"\n":
            text = "\n" + text  # a crash truncated the last line
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)  # leave no partial line
            raise
        self._ends_clean = True
