"""What W&B's offline files hold, read by its own command."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@functools.cache
def inspected(file: Path, *flags: str) -> list[Any]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *flags, "--json", str(file)]
    found = subprocess.run(command, capture_output=True, text=True)
    if "No such" in found.stderr:  # neither the command nor, later, its option
        pytest.skip("this version of wandb cannot show the file of an offline run")
    found.check_returncode()
    text = found.stdout
    return [json.loads(text)] if flags else [json.loads(line) for line in text.splitlines()]


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def history(file: Path) -> list[dict[str, Any]]:
    return [r["history"]["item"] for r in inspected(file) if r["type"] == "history"]
