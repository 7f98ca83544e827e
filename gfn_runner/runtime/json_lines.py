"""Lines of JSON: written whole, and read back as they were left; knows nothing of what they say."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.runtime.files import replaced

logger = logging.getLogger(__name__)


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line; the file appears complete or not at all."""
    with replaced(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What :func:`write_lines` wrote; empty if there is no file."""
    if not path.is_file():
        return []
    # JSON leaves U+2028 and its like as they are: only a line feed ends a record.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``; where a resumed run repeats a step, the later line wins.

    A last line that was cut off by a crash is passed over. None where there is no file, as of a run that
    trains nothing.
    """
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in _whole_lines(path):
        kinds = sorted({name.split("/")[0] for name in record})
        records[(record["step"], *kinds)] = record
    return sorted(records.values(), key=lambda record: record["step"])


def keep_lines(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Take the lines of a file out that are not wanted or not whole; it is never half there."""
    if path.is_file():
        write_lines(path, filter(wanted, list(_whole_lines(path))))


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a file that a crash may have cut off or left with bytes that are no text."""
    content = path.read_bytes() if path.is_file() else b""
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError):  # of JSON, or of UTF-8
            yield json.loads(line.decode("utf-8"))


class LineAppender:
    """Appends lines to a file. Where that fails (a full disk), they wait and are tried with the next.

    Attributes:
        waiting: lines that are not in the file yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self.waiting: list[str] = []
        self._ends_clean = self._told = False

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, and what has waited for it; never raises for want of space or rights."""
        self.waiting.append(json.dumps(record) + "\n")
        self._write_waiting()

    def sync(self) -> None:
        """Try the lines that wait, and make what is written survive a crash of the machine."""
        if self.waiting:
            self._write_waiting()
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    def take_back(self, lines: Sequence[str]) -> None:
        """Append lines that had waited when a process was killed, unless they were written after all."""
        known = [*_whole_lines(self.path), *map(json.loads, self.waiting)]
        self.waiting += [line for line in lines if json.loads(line) not in known]
        self.sync()

    def _write_waiting(self) -> None:
        try:
            self._write("".join(self.waiting))
        except OSError as error:
            if not self._told:
                logger.warning("%s cannot be written (%s): its lines wait", self.path, error)
            self._told = True
            return
        if self._told:
            logger.warning("%s is written again, nothing is missing", self.path)
        self.waiting, self._told = [], False

    def _write(self, text: str) -> None:
        before = self.path.stat().st_size if self.path.is_file() else 0
        if not self._ends_clean and before and self.path.read_bytes()[-1:] != b"\n":
            text = "\n" + text  # a crash has cut the last line off
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)  # no half lines
            raise
        self._ends_clean = True
