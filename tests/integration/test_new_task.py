"""CONTRIBUTING's example of a new task, taken from its text: one file and one yaml, and it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_task_of_contributing_runs(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    config = re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1)
    (tmp_path / "greeting_task.py").write_text(code)
    conf = tmp_path / "conf" / "task"
    conf.mkdir(parents=True)
    config = config.replace("gfn_runner.tasks.greeting.", "greeting_task.")
    (conf / "greeting.yaml").write_text(config)
    command = [
        sys.executable, "-m", "gfn_runner", "--config-dir", str(tmp_path / "conf"), "task=greeting",
        "experiment=tiny/smoke", "callbacks.evaluation.baseline_shots=[0]",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["final/log_reward/all"] < 0
    assert metrics["base_0_shot/log_reward/all"] < 0
