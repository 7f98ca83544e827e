"""Fixtures of several files."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The working directory; figures are closed afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


@pytest.fixture
def written(tmp_path):
    """Writes a file, and gives its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.fixture
def file(written):
    """Writes a file of JSON lines, and gives its path; a text is a line as it is."""

    def write(*records: object, name: str = "own.jsonl") -> str:
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        return written(name, "\n".join(lines))

    return write
