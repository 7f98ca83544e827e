"""How tests start runs: in this process, or as a program of their own; and what a run folder holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from gfn_runner.cli.main import main
from gfn_runner.config.compose import CONF, check_config
from gfn_runner.config.run_config import RunConfig
from gfn_runner.runtime.overrides import kept_overrides
from gfn_runner.train import train_and_evaluate
from tests.command_line import configs, questions_made_once

ROOT = Path(__file__).resolve().parents[1]
MODEL = Path(os.environ["GFN_RUNNER_TEST_MODEL"])  # see tests/conftest.py
TINY = (
    "experiment=tiny/smoke",
    f"lm.name={MODEL}",
    "callbacks.progress.show=none",
    "num_threads=1",
    "evaluation.posterior_draws=0",  # they take as long as all the rest
)
ARITHMETIC = ("task.data.n_test=4", "task.data.n_answers=20", "task.data.n_rationales=8")
SMALL = (
    *TINY,
    *ARITHMETIC,
    "evaluation.baseline_shots=[0]",
    "evaluation.final=2",
    "evaluation.singles=1",
)


def composed(*overrides: str) -> RunConfig:
    """The checked config of a command line."""
    with initialize_config_dir(version_base=None, config_dir=str(CONF)), questions_made_once():
        return check_config(compose("config", list(overrides), return_hydra_config=True))


def jobs(*arguments: str) -> list[RunConfig]:
    """The checked configs of the program's command line, with ``mode``, ``run`` and ``resume``."""
    return configs(*arguments)


def run(
    folder: Path, *overrides: str, base: tuple[str, ...] = SMALL, figures: bool = False
) -> Path:
    """Train and evaluate in this process, as the program does it.

    Args:
        folder: of the run.
        overrides: on top of ``base``.
        base: overrides that make a run small.
        figures: draw them; that takes as long as the training.

    Returns:
        The folder.

    Raises:
        UserError: where the program would show it and exit with 2.
    """
    lines = [*base, *overrides]
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr("gfn_runner.run.final_evaluation.draw_all", lambda *_: None)
        with initialize_config_dir(version_base=None, config_dir=str(CONF)):
            config = compose("config", overrides=lines, return_hydra_config=True)
        kept = kept_overrides(lines, config.hydra.runtime.choices.task)
        train_and_evaluate(check_config(config), folder, kept)
    return folder


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own, from the repository's root on one thread."""
    options = {"cwd": ROOT, "text": True, "env": {}} | options
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1", **options["env"]}
    return subprocess.Popen([sys.executable, "-m", "gfn_runner", *map(str, arguments)], **options)


def run_process(
    *arguments: str | Path, timeout: float = 600, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, to its end, with what it has printed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with start(*arguments, **(pipes | options)) as process:
        out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """A folder that the first of all pytest processes makes; copy it to write into it or to lock it.

    See "Making session-scoped fixtures execute only once" in the documentation of pytest-xdist.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """What a run has logged of its training steps; a line that is being written is passed over."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record for record in records if "train/loss" in record]


def metrics_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def weights_of(folder: Path, name: str = "adapter") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "adapter_model.safetensors")


def newest_state(folder: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    return torch.load(max(folder.glob("checkpoints/*.ckpt")), weights_only=True)


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and bytes of every file, to see that nothing is written; of the lock, which is taken, its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    times = {path: 0 if path.name == ".lock" else path.stat().st_mtime_ns for path in files}
    return {path: (times[path], path.read_bytes()) for path in files}


def exit_code(*arguments: str | Path) -> int:
    """Of the program, run in this process with a command line, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gfn_runner"])  # Hydra reads it
        patch.setattr("gfn_runner.run.final_evaluation.draw_all", lambda *_: None)
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code
    return 0


def second_rank(folder: Path) -> int:
    """The process of rank 1 of a run."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = place.read_bytes().decode().split("\0")
            if "gfn_runner.cli.worker" in words and str(folder / "config.yaml") in words:
                return int(place.parent.name)
    raise AssertionError("there is no second process")
