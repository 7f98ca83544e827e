"""Lines of JSON: written whole, and read back as they were left; knows nothing of what they say."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line; the file appears complete or not at all."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    unfinished.replace(path)


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
    if not path.is_file():
        return []
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        kinds = sorted({name.split("/")[0] for name in record})
        records[(record["step"], *kinds)] = record
    return sorted(records.values(), key=lambda record: record["step"])
