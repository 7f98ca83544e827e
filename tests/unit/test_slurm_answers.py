"""What SLURM's commands answer, and what is made of it; the commands are scripts of the test's own."""

from __future__ import annotations

import os
import subprocess
from functools import partial

import pytest
import torch

from gfn_runner.distributed.ranks import Processes
from gfn_runner.sweeps import check, slurm

FOLDER = "/nowhere/%j"
PROCESSES = Processes()


@pytest.mark.parametrize(
    ("said", "accounting", "states"),
    [
        ("7_0|RUNNING|None", "", {"7_0": ("RUNNING",)}),
        ("7_1|PENDING|Resources", "", {"7_1": ("PENDING", "Resources")}),
        ("8|FAILED|NonZeroExitCode", "", {"8": ("FAILED", "NonZeroExitCode")}),
        ("7_[2-3,5%4]|CANCELLED|None", "", {f"7_{n}": ("CANCELLED",) for n in (2, 3, 5)}),
        # Forgotten by squeue, known to the accounting; not known; and without accounting.
        ("", "echo '5|CANCELLED by 0'", {"5": ("CANCELLED",), "6": (slurm.GONE,)}),
        ("", "echo 'accounting is disabled' >&2; exit 1", {"5": (slurm.GONE,)}),
        # An array that was cancelled before it began is named as a whole, …
        ("2|CANCELLED|BeginTime", "", {f"2_{n}": ("CANCELLED", "BeginTime") for n in (0, 1)}),
        # … and the rest of one that has begun.
        ("3_1|RUNNING|None\n3|PENDING|None", "", {"3_1": ("RUNNING",)}),
    ],
)
def test_states_of_jobs_and_of_elements_of_arrays(said, accounting, states, slurm_commands):
    others = "9_0|RUNNING|None"
    slurm_commands(squeue=f"echo '{others}\n{said}'", sacct=accounting)
    expected = {"9_0": slurm.JobState("RUNNING")}
    expected |= {job: slurm.JobState(*state) for job, state in states.items()}
    assert slurm.states(list(expected)) == expected


def test_jobs_are_asked_for_by_the_users_number(slurm_commands, monkeypatch):
    # What the environment says of one's name may be another's.
    monkeypatch.setenv("LOGNAME", "nobody-else")
    slurm_commands(
        squeue=f'case "$*" in *"-u {os.getuid()} "*) echo "5|RUNNING|None";; esac', sacct="true"
    )
    assert slurm.states(["5"]) == {"5": slurm.JobState("RUNNING")}


def test_no_answer_is_not_taken_for_one(slurm_commands):
    slurm_commands(squeue="echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(slurm.Unreachable, match="Unable to contact"):
        slurm.states(["5"])


def test_jobs_whose_scripts_lie_in_a_folder(slurm_commands, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "other name").symlink_to(tmp_path / "sweep")
    ours = tmp_path / "sweep" / "a|b.sh"
    lines = [f"7_[2-3%4]|PENDING|{ours}", f"7_0|RUNNING|{ours}", f"7_1|FAILED|{ours}"]
    lines += [f"8|RUNNING|{tmp_path}/another/x.sh", "9|RUNNING|(null)", "10|RUNNING|"]
    slurm_commands(squeue="\n".join(f"echo '{line}'" for line in lines))
    for folder in ("sweep", "other name"):
        assert slurm.submitted_from(tmp_path / folder) == ["7_2", "7_3", "7_0"]


def test_jobs_are_cancelled_when_slurm_says_that_they_have_ended(slurm_commands, tmp_path):
    told, asked = tmp_path / "told", tmp_path / "asked"
    slurm_commands(
        scancel=f"echo $* > {told}",
        squeue=f"""echo >> {asked}; test -e {told} || exit 1
        test $(wc -l < {asked}) -lt 3 && echo '7_0|COMPLETING|' ; echo '7_1|CANCELLED|'""",
    )
    slurm.cancel(["7_0", "7_1"], poll=0.01)
    assert told.read_text() == "7_0 7_1\n" and len(asked.read_text()) == 3
    slurm_commands(squeue="echo '7_0|COMPLETING|'")
    with pytest.raises(slurm.Unreachable, match="7_0 still there"):
        slurm.cancel(["7_0", "7_1"], seconds=0.02, poll=0.01)


def test_partitions(slurm_commands):
    slurm_commands(sinfo="printf 'gpu*|1-00:00:00\\nlong|infinite\\nshort|1:30:00\\nbrief|0:30\\n'")
    assert slurm.partitions() == [
        slurm.Partition("gpu", True, 1440),
        slurm.Partition("long", False, None),
        slurm.Partition("short", False, 90),
        slurm.Partition("brief", False, 0.5),
    ]


@pytest.mark.parametrize(("given", "threads"), [("", "3"), ("OMP_NUM_THREADS=5", "5")])
def test_a_job_has_a_thread_for_each_of_its_cores(given, threads):
    parameters = check.executor_parameters(options_of(setup=["echo $OMP_NUM_THREADS"]))
    lines = "\n".join(parameters["slurm_setup"])
    command = ["env", "-i", *given.split(), "SLURM_CPUS_PER_TASK=3", "/bin/sh", "-c", lines]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"{threads}\n"


def given(launcher=check.SLURM, **options):
    return {"_target_": launcher, "submitit_folder": FOLDER, **options}


def options_of(**options):
    return check.launcher_options(given(**options))


def problems(processes=PROCESSES, runs=1, **options):
    found = check.launcher_problems(given(**options), processes, runs)
    return {problem.where: problem for problem in found}


def test_what_slurm_refuses_is_reported_with_what_it_was_asked_for(slurm_commands):
    slurm_commands(
        sinfo="printf 'gpu*|1:00:00\\n'", sbatch="echo 'sbatch: error: Invalid qos x' >&2; exit 1"
    )
    (found,) = problems(qos="x", timeout_min=60).values()
    assert found.where == "hydra.launcher"
    assert "a job with" in found.what and "qos=x" in found.what and ": Invalid qos x" in found.what
    (found,) = problems(runs=1200, timeout_min=60).values()
    assert "an array of 1200 jobs" in found.what and "MaxArraySize" in found.allowed
    slurm_commands(sbatch='grep -q -- "--partition=gpu" "$2" && grep -q -- "--time=60" "$2"')
    assert problems(partition="gpu", timeout_min=60) == {}


def test_a_time_that_the_partition_never_gives_is_refused(slurm_commands):
    slurm_commands(sinfo="printf 'gpu*|1:00:00\\nlong|infinite\\n'", sbatch="true")
    assert problems(timeout_min=61)["hydra.launcher.timeout_min"].allowed == "at most 60"
    assert problems(timeout_min=60) == problems(timeout_min=61, partition="gpu,long") == {}
    assert "gpu, long" in problems(partition="cpu")["hydra.launcher.partition"].allowed


def test_a_cluster_that_is_down_and_none_at_all(slurm_commands, tmp_path, monkeypatch):
    slurm_commands(sinfo="echo 'no controller' >&2; exit 1")
    assert "no controller" in problems()["hydra/launcher"].what
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert "not on this machine" in problems()["hydra/launcher"].what


def test_the_script_that_slurm_is_asked_about_is_the_one_of_the_jobs(slurm_commands):
    options = options_of(cpus_per_task=3, qos="x", additional_parameters={"mail-type": "END"})
    lines = check.batch_script(options).splitlines()
    assert {"#SBATCH --cpus-per-task=3", "#SBATCH --qos=x", "#SBATCH --mail-type=END"} <= set(lines)
    assert not any("partition" in line or "gpus" in line for line in lines)
    # A process has the cores of its job only if srun is told.
    (srun,) = (line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=3" in srun
    # Where one process fails, the others do not wait for it.
    assert "--kill-on-bad-exit=1" in srun
    assert not any("--array" in line for line in lines)
    assert "#SBATCH --array=0-99%100" in check.batch_script(options, 100).splitlines()


@pytest.mark.parametrize(
    ("options", "processes", "where"),
    [
        ({"tasks_per_node": 2}, Processes(), "tasks_per_node"),
        ({}, Processes(2), "tasks_per_node"),
        ({"tasks_per_node": 2}, Processes(2, 2), "nodes"),
        ({"tasks_per_node": 2, "gpus_per_node": 1}, Processes(2), "gpus_per_node"),
        ({"timeout_min": 2, "signal_delay_s": 120}, Processes(), "signal_delay_s"),
    ],
)
def test_options_that_do_not_fit_the_run(slurm_commands, options, processes, where):
    slurm_commands(sinfo="printf 'gpu*|infinite\\n'", sbatch="true")
    assert list(problems(processes, **options)) == [f"hydra.launcher.{where}"]


def test_options_that_do_not_fit_this_machine():
    local, n_gpus = partial(problems, launcher=check.LOCAL), torch.cuda.device_count()
    assert list(local(n_jobs=n_gpus + 1, gpus_per_node=1)) == ["hydra.launcher.gpus_per_node"]
    assert list(local(Processes(1, 2))) == ["trainer.num_nodes"]
    assert not local(Processes(2))


def test_options_are_those_of_hydra_submitit_launcher_and_all_wrong_ones_are_named():
    assert options_of(mem_per_cpu="2G", gpus_per_task=1).gpus_per_task == 1
    found = problems(partitoin="gpu", timeout_min="1:00:00", mem_gb=0.5, signal_delay_s=0)
    assert sorted(found) == [
        f"hydra.launcher.{name}"
        for name in ("mem_gb", "partitoin", "signal_delay_s", "timeout_min")
    ]
    assert "hydra.launcher.partition" in found["hydra.launcher.partitoin"].fix
    (problem,) = problems(launcher=check.BASIC).values()
    assert "hydra/launcher=basic" in problem.allowed
