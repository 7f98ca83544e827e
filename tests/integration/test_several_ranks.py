"""Several processes train one policy: gradients, conditions, buffers, files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from gfn_runner.data.trajectories import Batch, Trajectories
from gfn_runner.evaluation.draw import string_scores
from gfn_runner.inference import Policy
from gfn_runner.runtime.sweep_record import Sweep
from gfn_runner.tasks.base import GFlowNetModule
from tests.rank_worker import CONDITIONS, STEPS, m_step_of_known_strings, small_module
from tests.runs import (
    ROOT,
    SMALL,
    made_once,
    metrics_of,
    newest_state,
    run,
    run_process,
    second_rank,
    start,
    steps_of,
)
from tests.slow import mostly_slow
from tests.tiny_modules import NoTrainer

PAIRS = [
    ("JointBalance", "ddp", "torchrun"),
    ("TrajectoryBalance", "ddp", "srun"),
    ("TrajectoryBalance", "fsdp", "torchrun"),
    ("SFT", "fsdp", "torchrun"),
    ("PPO", "fsdp", "torchrun"),
]
M_STEPS = [("EM", "ddp", "torchrun"), ("EM", "fsdp", "torchrun")]
# As of the finished run beside it.
DRAWS = "evaluation.posterior_draws=8"
QUICK = [PAIRS[0], PAIRS[2], M_STEPS[1]]  # the others are slow


def two_ranks(*command: str) -> None:
    """Run a module in two processes, as torchrun would start them."""
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_network_port()),
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


@pytest.fixture(scope="session")
def records(tmp_path_factory) -> Callable[[Any], Path]:
    """A job's file: all quick ones, or all others, are done one after the other in the same two processes."""

    def record(folder: Path, jobs: list[Any]) -> None:
        folder.mkdir()
        lines = [":".join((*words, str(find_free_network_port()))) for words in jobs]
        two_ranks("tests.rank_worker", str(folder), *lines)

    def made(job: Any) -> Path:
        jobs = [other for other in PAIRS + M_STEPS if (other in QUICK) == (job in QUICK)]
        name = "quick-records" if job in QUICK else "records"
        folder = made_once(tmp_path_factory, name, lambda folder: record(folder, jobs))
        return folder / f"{job[0]}-{job[1]}.pt"

    return made


@pytest.mark.parametrize("pair", mostly_slow(PAIRS, QUICK[:2]), ids="-".join)
def test_two_ranks_take_the_gradient_of_one_rank_with_both_batches(pair, records):
    name, saved = pair[0], torch.load(records(pair))
    ranks = saved["steps"]
    conditions = {condition.key: condition for condition in CONDITIONS}
    assert all(len(steps) == STEPS for steps in ranks)
    for number, both in enumerate(zip(*ranks, strict=True)):
        alone = small_module(name)
        alone.load_state_dict(both[0]["parameters"], strict=False)
        alone._trainer = NoTrainer()  # type: ignore
        for record in both:
            batch = Batch([conditions[key] for key in record["keys"]], index=record["index"])
            (alone.training_step(batch, 0)["loss"] / 2).backward()
        assert [record["index"] for record in both] == [2 * number, 2 * number + 1]
        assert not set(both[0]["keys"]) & set(both[1]["keys"])
        expected = {key: p.grad for key, p in alone.named_parameters() if p.grad is not None}
        for record in both:
            # Every rank has the same parameters and the same gradient.
            torch.testing.assert_close(record["gradients"], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(record["parameters"], both[0]["parameters"], equal_nan=True)
        assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    _check_strings(saved, small_module(name))


@pytest.mark.parametrize("job", mostly_slow(M_STEPS, QUICK[2:]), ids="-".join)
def test_ranks_share_out_an_m_step_and_rank_0_reads_its_record(job, records):
    saved = torch.load(records(job))
    expected = m_step_of_known_strings(small_module("TrajectoryBalance").lm)
    for measured, parameters in saved["made"]:
        assert measured == pytest.approx(expected[0], abs=1e-4)
        torch.testing.assert_close(parameters, expected[1], atol=1e-4, rtol=1e-3)
    for m_steps, parameters in saved["read"]:
        assert m_steps == 1
        torch.testing.assert_close(parameters, saved["made"][0][1])


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
        scores = string_scores(alone.drawing([condition]), [condition], rows)
        found = torch.tensor([log_reward, log_pf])
        torch.testing.assert_close(found, torch.stack(scores[:2]), atol=1e-4, rtol=1e-4)


def started(folder: Path, *more: str) -> Path:
    """A run of two processes, started as a user does it, with a buffer that is used."""
    shown = ["callbacks.progress.show=lines", "callbacks.progress.every_n_steps=1"]
    lines = [*SMALL, *shown, "trainer.devices=2", "trainer.max_steps=3", DRAWS, *more]
    done = run_process(*lines, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("results are in", "step 1/3 ", "step 3/3 ", "evaluation at step 2 ("):
        # A slow evaluation also says in between how far it is.
        found = [line for line in done.stdout.splitlines() if line.startswith(said)]
        assert len(found) == 1, "one process speaks"
    return folder


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "two-ranks", started)


@pytest.mark.slow
def test_shared_weights_train_as_whole_ones_do(shared_run, tmp_path):
    sharded = started(tmp_path / "run", "trainer.strategy=fsdp")
    first = [steps_of(folder)[0] for folder in (shared_run, sharded)]
    for name in ("train/loss", "train/log_reward", "train/grad_norm"):
        assert first[1][name] == pytest.approx(first[0][name], rel=1e-3)
    assert (sharded / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
    assert Policy.load(sharded, device="cpu").sample("Question: 1 + 2 = ? Answer:", n=1)


def test_a_run_of_two_ranks_leaves_what_a_run_leaves(shared_run, finished):
    def names(folder: Path) -> set[str]:
        # Hydra's files, which a run within a test has not.
        return {path.name for path in folder.iterdir()} - {"run.log", "wandb", ".hydra"}

    assert names(shared_run) == names(finished)
    assert [record["step"] for record in steps_of(shared_run)] == [1, 2, 3], "one process writes"
    metrics, alone = metrics_of(shared_run), metrics_of(finished)
    assert metrics.keys() >= {key for key in alone if not key.startswith("train/")}
    assert metrics["final/n_questions/3_operands"] == alone["final/n_questions/3_operands"]


def test_a_run_of_two_ranks_is_resumed_with_one(shared_run, tmp_path, caplog):
    folder = shutil.copytree(shared_run, tmp_path / "run")
    before = newest_state(folder)["callbacks"]["ReplayBufferCallback"]["buffers"]
    run(folder, "trainer.max_steps=4", f"resume={folder}")
    (later,) = newest_state(folder)["callbacks"]["ReplayBufferCallback"]["buffers"]
    assert len(before) == 2 and all(buffer["keys"] for buffer in before)
    known = {key for buffer in before for key in buffer["keys"]}
    assert set(later["keys"]) >= known, "the strings of both ranks are there"
    assert "dropped" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_begin_with_supervised_steps(strategy, tmp_path):
    """Which have no gradient of log Z, a parameter that the later steps train."""
    lines = ["sampling.sft_share=0.5", "objective=tb", f"trainer.strategy={strategy}"]
    folder = started(tmp_path / "run", *lines)
    assert ["train/phi_spread" in step for step in steps_of(folder)] == [False, False, True]
    assert newest_state(folder)["state_dict"]["algorithm.log_z"].isfinite().any()


@pytest.mark.slow
def test_ranks_of_torchrun_take_the_config_of_the_first(tmp_path):
    """Each composes its own, and may find other environment variables."""
    lines = [*SMALL, "trainer.devices=2", "trainer.max_steps=1", "seed=${oc.env:RANK}"]
    two_ranks("gfn_runner", *lines, f"hydra.run.dir={tmp_path}", "hydra.output_subdir=null")
    assert metrics_of(tmp_path)["run/seed"] == 0


@pytest.mark.slow
def test_a_sweep_goes_on_where_a_rank_of_a_run_has_failed(tmp_path):
    lines = [*SMALL, "trainer.devices=2", "trainer.max_steps=500,3", f"hydra.sweep.dir={tmp_path}"]
    lines += ["callbacks.evaluation.every_n_steps=0"]
    process = start("-m", *lines, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    first, second = tmp_path / "0", tmp_path / "1"
    while not (first / "metrics.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(second_rank(first), signal.SIGKILL)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1 and "1 of 2 runs are ok" in said, said
    assert "another rank of this run has failed" in (first / "run.log").read_text()
    assert (second / "metrics.json").is_file()
    assert [job.state for job in Sweep.read(tmp_path).jobs] == ["failed", "ok"]


@pytest.mark.slow
def test_a_signal_to_one_rank_ends_all_of_them_with_one_checkpoint(tmp_path):
    folder = tmp_path / "run"
    lines = [*SMALL, "trainer.devices=2", "trainer.max_steps=500", f"hydra.run.dir={folder}"]
    process = start(*lines, "callbacks.evaluation.every_n_steps=0", stderr=subprocess.PIPE)
    written = folder / "metrics.jsonl"
    while not (written.is_file() and len(written.read_text().splitlines()) > 2):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(second_rank(folder), signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert "failed" not in said
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) == 1
    assert newest_state(folder)["global_step"] == steps_of(folder)[-1]["step"], "nothing is lost"
