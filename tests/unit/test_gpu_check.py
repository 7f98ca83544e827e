"""The check for machines with a GPU: refuses without one, keeps its limits, leaves what it has found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
from gpu_check import ROOT, Part


def test_without_a_cuda_device_it_refuses_and_writes_nothing(tmp_path):
    page = gpu_check.PAGE.read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu_check.py")],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stderr and "nothing was run" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    assert gpu_check.PAGE.read_text(encoding="utf-8") == page


SLEEP = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ("limit", "code", "model", "left", "state", "said"),
    [
        (50, "print('good')", None, 100, "ok", "good"),
        (50, "1 / 0", None, 100, "failed", "ZeroDivisionError"),
        (1, SLEEP, None, 100, "over its limit", "begun"),
        (50, "1", None, 0.5, "left out", "are over"),
        (50, "1", Path("/nowhere"), 100, "left out", "make smollm2"),
    ],
)
def test_a_part_says_how_it_ended(limit, code, model, left, state, said):
    result = gpu_check.run(Part("a", limit, ("-c", code), model), sys.executable, left)
    assert result.state == state and said in result.tail
