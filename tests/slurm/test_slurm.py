"""Sweeps on a real SLURM: requeued, preempted, out of time, killed, cancelled, in two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from gfn_runner.runtime.run_lock import acquire_run_lock

from ..tiny_models import save_model_that_ignores_padding
from .conftest import fields, slurm, until

pytestmark = pytest.mark.slurm
STEPS = 400  # more than a start of the program takes


def test_two_by_two_runs_then_nothing_runs_again(start):
    sweep = start("trainer.max_steps=2", "seed=0,1", "objective=subtb,tb")
    assert sweep.ends() == 0, sweep.said
    assert [job["state"] for job in sweep.jobs()] == ["ok"] * 4
    assert "4 of 4 runs are ok" in sweep.said and "seed=1" in sweep.said
    assert [sweep.steps(number) for number in range(4)] == [[1, 2]] * 4
    assert len({fields(sweep.job_id(number))["ArrayJobId"] for number in range(4)}) == 1
    names = [sweep.job_id(number) for number in range(4)]

    again = start(resume=True)
    assert again.ends() == 0, again.said
    assert "0 runs to do, 4 already finished" in again.said
    assert [job["value"] for job in again.jobs()] == [job["value"] for job in sweep.jobs()]
    assert not any(job["again"] for job in again.jobs())
    assert [job["job_id"] for job in again.jobs()] == names, "SLURM was given nothing"


def test_a_requeued_run_goes_on_where_it_was(start):
    sweep = start("trainer.max_steps=30", "seed=0")
    sweep.trains(0)
    slurm("scontrol", "requeue", sweep.job_id(0))
    assert sweep.ends() == 0, sweep.said
    assert fields(sweep.job_id(0))["Restarts"] == "1"
    assert sweep.steps(0) == list(range(1, 31)), "each step once"
    assert "SIGTERM: the state of step" in sweep.log(0)
    assert (sweep.folder / "0" / "environment-2.json").exists()


def test_a_preempted_run_makes_way_and_goes_on(start):
    sweep = start("trainer.max_steps=30", "seed=0")
    sweep.trains(0)
    urgent = ["--partition=urgent", "--cpus-per-task=2", "--mem=100M", "--output=/dev/null"]
    other = slurm("sbatch", "--parsable", *urgent, "--wrap", "sleep 2").strip()
    assert sweep.ends() == 0, sweep.said
    assert fields(other)["JobState"] == "COMPLETED"
    assert int(fields(sweep.job_id(0))["Restarts"]) >= 1
    assert sweep.steps(0) == list(range(1, 31))
    assert "SIGUSR2: the state of step" in sweep.log(0)


def test_a_run_over_its_time_limit_goes_back_into_the_queue_until_it_is_done(start):
    # SLURM sends the signal up to a minute early.
    limit = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30")
    # 125 s at least: longer than the limit on any machine.
    slow = ("+callbacks.slow._target_=tests.slow_steps.SlowSteps", "+callbacks.slow.seconds=0.5")
    sweep = start("trainer.max_steps=250", "seed=0", *slow, *limit)
    assert sweep.ends() == 0, sweep.said
    assert int(fields(sweep.job_id(0))["Restarts"]) >= 1
    assert sweep.steps(0) == list(range(1, 251))
    assert "SIGUSR2" in sweep.log(0)


def test_a_run_that_may_not_go_back_has_timed_out(start):
    limit = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=30")
    sweep = start("trainer.max_steps=100000", "seed=0", *limit, "hydra.launcher.max_num_timeout=0")
    assert sweep.ends() == 1
    (job,) = sweep.jobs()
    assert job["state"] == "timed out" and "timed-out too many times" in job["why"], job
    assert sweep.steps(0), "it has trained"
    assert list((sweep.folder / "0" / "checkpoints").glob("*.ckpt")), "and has saved"


def test_one_killed_one_cancelled_one_never_begun_and_all_go_on_later(start):
    sweep = start("trainer.max_steps=100000", "callbacks.checkpoint.every_n_steps=2", "seed=0,1,2")
    sweep.trains(0)
    sweep.trains(1)
    kill(sweep.job_id(0))
    slurm("scancel", sweep.job_id(1), sweep.job_id(2))
    assert sweep.ends() == 1
    assert [job["state"] for job in sweep.jobs()] == ["failed", "cancelled", "cancelled"], (
        sweep.said
    )
    assert "FAILED" in sweep.jobs()[0]["why"] and "CANCELLED" in sweep.jobs()[1]["why"]
    assert "0 of 3 runs are ok" in sweep.said
    before = [sweep.steps(number) for number in (0, 1)]

    other = start("trainer.max_steps=12", "seed=0,1,2", "callbacks.checkpoint.every_n_steps=2")
    assert other.ends() == 2 and "was made for" in other.said, "not the same sweep"
    assert [sweep.steps(number) for number in (0, 1)] == before

    again = start(resume=True)
    for number in (0, 1):
        again.trains(number, step=before[number][-1] + 3)
        steps = again.steps(number)
        assert steps == list(range(1, len(steps) + 1)), "it went on"
    slurm("scancel", "-u", "root")
    assert again.ends() == 1


def kill(job_id):
    """End the processes of a job with SIGKILL, as the kernel does when memory runs out."""
    found = 0
    number = fields(job_id)["JobId"]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            own = f"SLURM_JOB_ID={number}".encode() in (process / "environ").read_bytes().split(
                b"\0"
            )
        except OSError:
            continue
        if own and b"submitit.core._submit" in command and b"srun" not in command[0]:
            os.kill(int(process.name), signal.SIGKILL)
            found += 1
    assert found == 1


def test_two_processes_are_one_run(start):
    sweep = start("trainer.max_steps=3", "trainer.devices=1,2", "seed=0")
    assert sweep.ends() == 0, sweep.said
    one, two = (fields(sweep.job_id(number)) for number in range(2))
    assert (one["NumTasks"], two["NumTasks"]) == ("1", "2")
    assert sweep.steps(1) == [1, 2, 3], "one of them writes"
    assert (sweep.folder / "1" / "adapter" / "adapter_model.safetensors").exists()
    config = (sweep.folder / "1" / "config.yaml").read_text()
    assert "devices: 2" in config
    assert [job["state"] for job in sweep.jobs()] == ["ok", "ok"]


def test_two_processes_go_on_after_a_requeue(start):
    sweep = start("trainer.max_steps=20", "trainer.devices=2", "seed=0")
    sweep.trains(0)
    slurm("scontrol", "requeue", sweep.job_id(0))
    assert sweep.ends() == 0, sweep.said
    assert sweep.steps(0) == list(range(1, 21))
    assert fields(sweep.job_id(0))["Restarts"] == "1"


def test_where_the_first_of_two_processes_fails_early_the_other_does_not_wait_for_it(
    start, tmp_path
):
    with acquire_run_lock(tmp_path / "sweep" / "0"):
        sweep = start("trainer.max_steps=2", "trainer.devices=2", "seed=0")
        assert sweep.ends() == 1, sweep.said
    (job,) = sweep.jobs()
    assert job["state"] == "failed" and "is being written by" in job["why"]
    until(lambda: fields(job["job_id"])["JobState"] == "FAILED", seconds=60)


def test_a_run_that_fails_says_why_and_the_other_ends_well(start, tmp_path):
    save_model_that_ignores_padding(tmp_path / "model")
    sweep = start("trainer.max_steps=2", "seed=0", f"lm.name=embedded,{tmp_path / 'model'}")
    assert sweep.ends() == 1
    ok, failed = sweep.jobs()
    assert (ok["state"], failed["state"]) == ("ok", "failed")
    assert "is not supported" in failed["why"]
    assert fields(failed["job_id"])["JobState"] == "FAILED", "for SLURM too"
    assert "#1 failed: lm.name: " in sweep.said
    assert "1 of 2 runs are ok" in sweep.said
    assert "failed" in (sweep.folder / "sweep.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_interrupted_leaves_its_jobs_and_waits_for_them_later(start, number):
    sweep = start(f"trainer.max_steps={STEPS}", "seed=0")
    sweep.trains(0)
    sweep.process.send_signal(number)
    assert sweep.ends() == 128 + number
    job_id = sweep.job_id(0)
    assert f"scancel {job_id}" in sweep.said
    assert fields(job_id)["JobState"] == "RUNNING"
    again = start(resume=True)
    assert again.ends() == 0, again.said
    assert f"is already SLURM job {job_id}" in again.said
    assert sweep.steps(0) == list(range(1, STEPS + 1))
    assert fields(job_id)["Restarts"] == "0"


def test_jobs_of_a_sweep_that_was_killed_while_it_submitted_them_are_cancelled(start, tmp_path):
    real = shutil.which("sbatch")
    killing = tmp_path / "bin" / "sbatch"
    killing.parent.mkdir()
    # SLURM takes the jobs, and nobody is left to hear that. A question (--test-only) kills nobody.
    killing.write_text(
        f'#!/bin/sh\n{real} "$@" || exit\ncase "$*" in *--test-only*) ;; *) kill -9 $PPID ;; esac\n'
    )
    killing.chmod(0o755)
    # Without what the sweep would have written behind the submission such jobs end as soon as they begin.
    later = "hydra.launcher.additional_parameters={begin: now+1hour}"
    sweep = start("trainer.max_steps=2", "seed=0,1", later, path=killing.parent)
    assert sweep.ends() == -signal.SIGKILL
    assert [job["job_id"] for job in sweep.jobs()] == [None, None]
    (array,) = {line.split("_")[0] for line in slurm("squeue", "-h", "-r", "-o", "%i").splitlines()}
    again = start("hydra.launcher.additional_parameters={begin: now}", resume=True)
    assert again.ends() == 0, again.said
    assert f"{array}_0, {array}_1; they are cancelled" in again.said
    assert {job["job_id"].split("_")[0] for job in again.jobs()} != {array}
    assert [sweep.steps(number) for number in (0, 1)] == [[1, 2], [1, 2]]


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("hydra.launcher.partition=nope", "hydra.launcher.partition", "debug, urgent"),
        ("hydra.launcher.timeout_min=600", "hydra.launcher.timeout_min", "at most 60"),
        ("hydra.launcher.mem_gb=100", "hydra.launcher", "configuration is not available"),
        ("hydra.launcher.gpus_per_node=1", "hydra.launcher", "generic resource"),
        ("hydra.launcher.constraint=a100", "hydra.launcher", "feature"),
        ("hydra.launcher.additional_parameters={foo: 1}", "hydra.launcher", "foo"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_is_refused_before_anything_is_submitted(start, line, key, said):
    before = slurm("squeue", "-h", "-t", "all", "-o", "%i").split()
    sweep = start("seed=0,1", "optimizer.lr=1e-3,-1e-3", line)
    assert sweep.ends() == 2
    assert f"\n{key}: " in sweep.said and said in sweep.said
    assert "optimizer.lr: given -0.001" in sweep.said, "with the other user errors of the sweep"
    assert "nothing was started" in sweep.said or "no run was started" in sweep.said
    assert not sweep.folder.exists()
    # Meanwhile SLURM may have forgotten an old one.
    assert set(slurm("squeue", "-h", "-t", "all", "-o", "%i").split()) <= set(before)


def test_an_array_larger_than_slurm_takes_is_refused_before_anything_is_submitted(start):
    sweep = start("seed=range(0,6)", "trainer.max_steps=1,2,3,4,5,6,7")
    assert sweep.ends() == 2, sweep.said
    assert "refuses an array of 42" in sweep.said and not sweep.folder.exists()


def test_a_search_on_slurm_goes_on_where_it_was_killed(start):
    lines = ("hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "trainer.max_steps=2")
    space = ("hydra/sweeper=search", "optimizer.lr=tag(log, interval(1e-4, 1e-3))")
    sweep = start(*space, *lines)
    until(lambda: any(job["state"] == "ok" for job in sweep.jobs()), sweep)
    until(lambda: any(job["state"] in ("submitted", "running") for job in sweep.jobs()), sweep)
    sweep.process.kill()
    sweep.ends()
    first = {job["number"]: job["overrides"] for job in sweep.jobs()}
    again = start(resume=True)
    assert again.ends() == 0, again.said
    jobs = {job["number"]: job for job in again.jobs()}
    assert sorted(jobs) == [0, 1, 2]
    assert all(jobs[number]["overrides"] == lines for number, lines in first.items())
    assert len({json.dumps(job["overrides"]) for job in jobs.values()}) == 3, "three different ones"
    assert "best of 3 trials" in again.said
