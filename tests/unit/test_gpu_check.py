"""The check for machines with a GPU: refuses without one, keeps its limits, leaves what it has found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import gpu_check
from gpu_check import PARTS, ROOT, Part, Result

MACHINE = {
    "device": "A GPU, 80 GiB", "torch": "2", "cuda": "13", "python": "p", "commit": "c0ffee",
    "date": "2026-01-31",
}  # fmt: skip


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


def test_all_parts_fit_into_eight_minutes():
    assert sum(part.limit for part in PARTS) <= gpu_check.MOST_S == 480
    assert any("tests/parity/test_gpu.py" in part.command for part in PARTS)
    for part in PARTS:
        own = [word for word in part.command if word.endswith(".py")]
        assert all((ROOT / word).exists() for word in own), part.name


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
    assert result.state == state and said in result.tail and result.seconds < 20


def test_results_name_the_device_and_go_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- cuda check -->\nold\n<!-- /cuda check -->\nafter\n")
    monkeypatch.setattr(gpu_check, "PAGE", page)
    monkeypatch.setattr(gpu_check, "FOLDER", tmp_path)
    results = [Result("tests", "python -m pytest", 100, "ok", 12.0, r"3 passed \d")]
    gpu_check.write(MACHINE, results)
    gpu_check.write(
        MACHINE, [*results, Result("gpt2", "python b", 90, "over its limit", 90.0, "…")]
    )
    text = page.read_text()
    assert text.startswith("before\n<!-- cuda check -->\n## Check\n")
    assert text.endswith("<!-- /cuda check -->\nafter\n") and "old" not in text
    assert text.count("A GPU, 80 GiB; torch 2, CUDA 13; commit c0ffee, 2026-01-31.") == 1
    assert "| gpt2 | over its limit | 90 | 90 |" in text and r"3 passed \d" in text
    values = json.loads((tmp_path / "result.json").read_text())
    assert values["machine"] == MACHINE and len(values["parts"]) == 2
