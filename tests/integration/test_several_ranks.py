"""Several processes train one policy: gradients, conditions, buffers, files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gfn_runner.data.trajectories import Batch, Trajectories
from gfn_runner.distributed.ranks import _free_port
from gfn_runner.evaluation.draw import string_scores
from gfn_runner.inference import Policy
from gfn_runner.module import GFlowNetModule
from tests.rank_worker import CONDITIONS, STEPS, small_module

from .conftest import SMALL, run

ROOT = Path(__file__).resolve().parents[2]


def two_ranks(*command: str) -> None:
    """Run a module in two processes, as torchrun would start them."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


@pytest.mark.parametrize(
    ("objective", "strategy"),
    [("JointBalance", "ddp"), ("TrajectoryBalance", "ddp"), ("TrajectoryBalance", "fsdp")],
)
def test_two_ranks_take_the_gradient_of_one_rank_with_both_batches(objective, strategy, tmp_path):
    two_ranks("tests.rank_worker", objective, strategy, str(tmp_path / "records.pt"))
    saved = torch.load(tmp_path / "records.pt")
    ranks = saved["steps"]
    conditions = {condition.key: condition for condition in CONDITIONS}
    assert all(len(steps) == STEPS for steps in ranks)
    for number, both in enumerate(zip(*ranks, strict=True)):
        alone = small_module(objective)
        alone.load_state_dict(both[0]["parameters"], strict=False)
        for record in both:
            batch = Batch([conditions[key] for key in record["keys"]], index=record["index"])
            (alone.training_step(batch, 0)["loss"] / 2).backward()
        assert [record["index"] for record in both] == [2 * number, 2 * number + 1]
        assert not set(both[0]["keys"]) & set(both[1]["keys"])
        expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
        for record in both:
            # Every rank has the same parameters and the same gradient.
            torch.testing.assert_close(record["gradients"], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(record["parameters"], both[0]["parameters"], equal_nan=True)
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    _check_strings(saved, small_module(objective))


@torch.no_grad()
def _check_strings(saved: dict[str, Any], alone: GFlowNetModule) -> None:
    """What both ranks have drawn of the trained policy has the log R and log q of one process."""
    alone.load_state_dict(saved["trained"], strict=False)
    assert [key for key, *_ in saved["strings"]] == [c.key for c in CONDITIONS[:3]]
    for condition, (_, texts, log_pf, log_reward) in zip(
        CONDITIONS, saved["strings"], strict=False
    ):
        ids = [alone.lm.encode(text) for text in texts]
        rows = Trajectories.from_rows(
            ids, [(True,) * len(i) for i in ids], [0] * len(ids), alone.lm.device
        )
        scores = string_scores(alone.lm, alone.task, alone.evaluation_rule, [condition], rows)
        found = torch.tensor([log_reward, log_pf])
        torch.testing.assert_close(found, torch.stack(scores[:2]), atol=1e-4, rtol=1e-4)


def started(folder: Path, *more: str) -> Path:
    """A run of two processes, started as a user does it, with a buffer that is used."""
    shown = ["callbacks.progress.show=lines", "callbacks.progress.every=1"]
    lines = [
        *SMALL,
        *shown,
        "trainer.devices=2",
        "trainer.max_steps=3",
        f"hydra.run.dir={folder}",
        *more,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "gfn_runner", *lines],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("everything is in", "step 1/3 ", "step 3/3 ", "evaluation at step 2 ("):
        assert done.stdout.count(said) == 1, "one process speaks"
    return folder


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    return started(tmp_path_factory.mktemp("ranks") / "run")


def test_shared_weights_train_as_whole_ones_do(shared_run, tmp_path):
    sharded = started(tmp_path / "run", "trainer.strategy=fsdp")
    first = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        for folder in (shared_run, sharded)
    ]
    for name in ("train/loss", "train/log_reward", "train/grad_norm"):
        assert first[1][name] == pytest.approx(first[0][name], rel=1e-3)
    assert (sharded / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
    assert Policy.load(sharded, device="cpu").sample("Question: 1 + 2 = ? Answer:", n=1)


def test_a_run_of_two_ranks_leaves_what_a_run_leaves(shared_run, finished):
    def names(folder: Path) -> set[str]:
        return {path.name for path in folder.iterdir()} - {"run.log", "wandb"}

    assert names(shared_run) == names(finished)
    lines = (shared_run / "metrics.jsonl").read_text().splitlines()
    steps = [record for line in lines if "train/loss" in (record := json.loads(line))]
    assert [record["step"] for record in steps] == [1, 2, 3], "one process writes"
    metrics, alone = (
        json.loads((folder / "metrics.json").read_text()) for folder in (shared_run, finished)
    )
    assert metrics.keys() >= {key for key in alone if not key.startswith("train/")}
    assert metrics["final/n_questions/3_operands"] == alone["final/n_questions/3_operands"]


def test_a_checkpoint_of_two_ranks_goes_on_with_one(shared_run, caplog):
    (file,) = (shared_run / "checkpoints").glob("*.ckpt")
    state = torch.load(file, weights_only=True)["callbacks"]["ReplayCallback"]["buffer"]
    run(shared_run, "trainer.max_steps=4", f"resume={shared_run}")
    file = max((shared_run / "checkpoints").glob("*.ckpt"))
    later = torch.load(file, weights_only=True)["callbacks"]["ReplayCallback"]["buffer"]
    assert len(state) > 5 and later.keys() >= state.keys(), "the strings of both ranks are there"
    assert "dropped" not in caplog.text


def test_a_signal_to_one_rank_ends_all_of_them_with_one_checkpoint(tmp_path):
    folder = tmp_path / "run"
    lines = [*SMALL, "trainer.devices=2", "trainer.max_steps=500", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "gfn_runner", *lines, "callbacks.evaluation.every=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    written = folder / "metrics.jsonl"
    while not (written.is_file() and len(written.read_text().splitlines()) > 2):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(second_rank(folder), signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert "failed" not in said
    (file,) = (folder / "checkpoints").glob("*.ckpt")
    state = torch.load(file, weights_only=True)
    steps = [json.loads(line)["step"] for line in written.read_text().splitlines()]
    assert state["global_step"] == steps[-1], "nothing is lost"


def second_rank(folder: Path) -> int:
    """The process of rank 1 of a run."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = place.read_bytes().decode().split("\0")
            if "gfn_runner.distributed.worker" in words and str(folder / "config.yaml") in words:
                return int(place.parent.name)
    raise AssertionError("there is no second process")
