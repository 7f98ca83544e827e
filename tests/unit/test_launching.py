"""Sweeps between plan and end: passed over, refused by a disk or by SLURM; the runs are stand-ins."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import submitit
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.types import HydraContext, RunMode
from submitit.core.utils import FailedJobError

from gfn_runner.cli.multirun import sweep_under_way
from gfn_runner.config.compose import CONF
from gfn_runner.runtime import environment
from gfn_runner.runtime import sweep_record as record
from gfn_runner.runtime.sweep_record import Job, Sweep
from gfn_runner.sweeps import check, slurm
from gfn_runner.sweeps.launching import cluster, processes
from gfn_runner.sweeps.launching.launch import InvalidSweep, current_sweep, launch

SMALL = ("experiment=tiny/smoke", "num_threads=1")


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a launcher as Hydra does; its runs do nothing but note their seeds in ``ran``."""
    before = Singleton.get_state()
    handlers = logging.root.handlers[:]  # a run puts others in their place
    monkeypatch.setattr("gfn_runner.sweeps.launching.launch._current", [])

    def make(*lines: str) -> Any:
        overrides = [*SMALL, f"hydra.sweep.dir={tmp_path / 'sweep'}", *lines]
        GlobalHydra.instance().clear()
        initialize_config_dir(str(CONF), version_base=None)
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("config", overrides, run_mode=RunMode.MULTIRUN)
        HydraConfig.instance().set_config(config)

        def task(composed: Any) -> float:
            made.ran.append(composed.seed)
            return float(composed.seed)

        none = SimpleNamespace(on_job_start=lambda **_: None, on_job_end=lambda **_: None)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=none)  # type: ignore[arg-type]
        made = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        made.ran = []
        return made

    yield make
    GlobalHydra.instance().clear()
    Singleton.set_state(before)
    logging.root.handlers[:] = handlers


IMPOSSIBLE = [
    "callbacks.replay_buffer.probability=1",
    "callbacks.replay_buffer.seed_demonstrations=false",
    "seed=3",
]


def test_a_trial_whose_values_do_not_go_together_has_failed_and_stops_no_other(
    launcher, tmp_path, capsys
):
    made = launcher("hydra/sweeper=search")
    returns = launch(made, [["seed=2"], IMPOSSIBLE, ["seed=4"]], 5)
    assert [done.return_value for done in returns] == [2, None, 4] and made.ran == [2, 4]
    jobs = Sweep.read(tmp_path / "sweep").jobs
    assert [(job.number, job.state) for job in jobs] == [(5, "ok"), (6, "failed"), (7, "ok")]
    assert "callbacks.replay_buffer.probability" in jobs[1].why
    assert "#6  failed" in capsys.readouterr().out
    (alone,) = launch(made, [IMPOSSIBLE], 8)
    assert alone.return_value is None, "none at all may be left"


@pytest.mark.parametrize(
    ("metric", "values", "goes_on"),
    [
        ("vote_accuracy", [None, None], True),
        ("log_rewrd", [None, 0.5], True),
        ("log_rewrd", [None], False),
    ],
    ids=["known", "measured by a later trial", "measured by none"],
)
def test_a_search_ends_where_no_trial_measures_its_metric(launcher, metric, values, goes_on):
    made = launcher("hydra/sweeper=search", f"optimized_metric={metric}")
    left = list(values)

    def measured(composed: Any) -> float:
        value = left.pop(0)
        if value is None:
            raise RuntimeError(f"optimized_metric: given {metric!r}, which was not measured")
        return value

    made.task_function = measured
    lines = [[f"seed={n}", f"optimized_metric={metric}"] for n in range(len(values))]
    if goes_on:
        assert [done.return_value for done in launch(made, lines, 0)] == values
    else:
        with pytest.raises(InvalidSweep) as caught:
            launch(made, lines, 0)
        assert f"optimized_metric: given {metric!r}" in str(caught.value.error)


def test_a_search_with_nothing_left_to_do_shows_its_table(tmp_path, monkeypatch, capsys):
    jobs = [Job(n, [f"seed={n}"], str(n), "ok") for n in range(2)]
    Sweep(tmp_path, ["hydra/sweeper=search"], jobs, searches=True).write()
    monkeypatch.setattr("gfn_runner.sweeps.launching.launch._current", [])
    with sweep_under_way(tmp_path, pages=False):
        pass
    assert "2 of 2 runs are ok (2 had finished before)" in capsys.readouterr().out
    assert json.loads((tmp_path / "sweep.json").read_text())["searches"] is False


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that takes no record while ``full_disk.full``; ``tries`` are counted."""
    write = record.write_atomically
    disk = SimpleNamespace(full=True, tries=0)

    def refuse(path: Path, text: str) -> None:
        disk.tries += 1
        if disk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(record, "write_atomically", refuse)
    return disk


def test_a_record_that_the_disk_refuses_is_said_once_and_written_later(tmp_path, full_disk, caplog):
    sweep = Sweep(tmp_path, [], [Job(0, ["seed=0"], "0")])
    with pytest.raises(OSError):
        sweep.write()
    sweep.keep()
    sweep.keep(changed=False)
    assert full_disk.tries == 3 and caplog.text.count("No space left") == 1
    full_disk.full = False
    sweep.keep(changed=False)
    sweep.keep(changed=False)
    assert full_disk.tries == 4 and Sweep.read(tmp_path) == sweep


def ended(folder: Path, value: float) -> SimpleNamespace:
    """A job that has left a result."""
    folder.mkdir(parents=True, exist_ok=True)
    pickle = folder / f"{value}.pkl"
    pickle.touch()
    paths = SimpleNamespace(result_pickle=pickle, stdout=folder / "stdout")
    result = SimpleNamespace(return_value=value)
    task = SimpleNamespace(paths=paths, result=lambda: result, exception=lambda: None)
    job_id = f"7_{value}"
    return SimpleNamespace(
        job_id=job_id, paths=paths, task=lambda _: task, done=lambda: True, num_tasks=1
    )


def test_runs_go_on_while_the_disk_is_full(launcher, tmp_path, full_disk, monkeypatch):
    made = launcher("hydra/launcher=local", "hydra.launcher.poll_s=0.01")
    begun = []

    def start(_: Any, plan: Any, *__: Any) -> Any:
        begun.append(plan.job.number)
        full_disk.full = plan.job.number < 2
        if plan.job.number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return ended(tmp_path / "jobs", plan.config.seed)

    monkeypatch.setattr(processes, "_start_process", start)
    full_disk.full = False
    returns = launch(made, [["seed=2"], ["seed=3"], ["seed=4"]], 0)
    assert [done.return_value for done in returns] == [2, None, 4] and begun == [0, 1, 2]
    jobs = Sweep.read(tmp_path / "sweep").jobs
    assert [job.state for job in jobs] == ["ok", "failed", "ok"] and "No space left" in jobs[1].why


def test_runs_at_a_time_share_out_the_cores(launcher, tmp_path, monkeypatch):
    seen: list[str | None] = []

    def submit(_: Any, __: Any, composed: Any, *___: Any) -> Any:
        seen.append(os.environ.get("OMP_NUM_THREADS"))
        return ended(tmp_path / "jobs", float(composed.seed))

    monkeypatch.setattr(submitit.LocalExecutor, "submit", submit)
    monkeypatch.setattr(environment, "cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = launcher("hydra/launcher=local", "hydra.launcher.poll_s=0.01", "hydra.launcher.n_jobs=3")
    launch(made, [["seed=2"], ["seed=3", "trainer.devices=2"]], 0)
    assert seen == ["4", "2"] and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launch(made, [["seed=4"]], 2)
    assert seen[2:] == ["7"] == [os.environ["OMP_NUM_THREADS"]]
    assert environment.threads_per_process(13) == 1


def test_a_sweep_that_cannot_be_recorded_is_not_begun(launcher, tmp_path, full_disk):
    made = launcher()
    with pytest.raises(InvalidSweep) as caught:
        launch(made, [["seed=2"]], 0)
    assert "No space left" in str(caught.value.error) and made.ran == []


@pytest.fixture
def on_slurm(launcher, monkeypatch):
    """Launches runs on a SLURM that takes every job, and has none."""
    monkeypatch.setattr(slurm, "partitions", lambda: [slurm.Partition("all", True, None)])
    monkeypatch.setattr(slurm, "refusal", lambda script: "")
    monkeypatch.setattr(slurm, "submitted_from", lambda folder: [])
    monkeypatch.setattr(check, "batch_script", lambda options, n_runs: "")
    made = launcher("hydra/launcher=slurm", "hydra.launcher.poll_s=0.01")
    return lambda *jobs: [done.return_value for done in launch(made, list(jobs), 0)]


def test_what_slurm_does_not_take_has_failed_and_the_rest_is_waited_for(
    on_slurm, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm, "states", lambda ids: {i: slurm.JobState("COMPLETED") for i in ids})
    said = ("AssocMaxSubmitJobLimit", "Batch job submission failed: policy")

    def submit(_: Any, group: Any) -> Any:
        if group[0].config.trainer.processes.number > 1:
            raise FailedJobError("\n".join(f"sbatch: error: {line}" for line in said))
        return [ended(tmp_path / "jobs", plan.config.seed) for plan in group]

    monkeypatch.setattr(cluster, "_submit", submit)
    two = "trainer.devices=2"
    returned = on_slurm(["seed=2"], ["seed=3", two], ["seed=4"], ["seed=5", two])
    assert returned == [2, None, 4, None]
    jobs = Sweep.read(tmp_path / "sweep").jobs
    assert [job.state for job in jobs] == ["ok", "failed", "ok", "failed"]
    assert [job.job_id for job in jobs] == ["7_2", None, "7_4", None]
    shown = capsys.readouterr().out
    assert "submitted: SLURM job 7;" in shown and shown.count("failed: could not be submitted") == 2
    assert "; ".join(said) in shown
    assert "waiting for the others" in shown and f"resume={tmp_path / 'sweep'}" in shown
    assert current_sweep().failures == [jobs[1], jobs[3]]


def test_jobs_that_the_record_does_not_know_of_are_cancelled(
    on_slurm, tmp_path, monkeypatch, capsys
):
    Sweep(tmp_path / "sweep", [], [Job(0, ["seed=2"], "0", "submitted", job_id="6_0")]).write()
    states = dict.fromkeys(["6_0", "7_0", "7_1"], slurm.JobState("RUNNING"))
    done: list[Any] = []

    def submitted_from(folder: Path) -> list[str]:
        assert folder == tmp_path / "sweep" / ".submitit"
        return list(states)

    def cancel(job_ids: list[str]) -> None:
        done.append(job_ids)
        states["6_0"] = slurm.JobState("COMPLETED")

    def submit(_: Any, group: Any) -> Any:
        done.append([plan.job.number for plan in group])
        return [ended(tmp_path / "jobs", plan.config.seed) for plan in group]

    monkeypatch.setattr(slurm, "submitted_from", submitted_from)
    monkeypatch.setattr(slurm, "cancel", cancel)
    gone = slurm.JobState("GONE")
    monkeypatch.setattr(slurm, "states", lambda ids: {i: states.get(i, gone) for i in ids})
    monkeypatch.setattr(cluster, "_submit", submit)
    on_slurm(["seed=2"], ["seed=3"])
    assert done == [["7_0", "7_1"], [0, 1]], "cancelled before others are submitted"
    assert "7_0, 7_1; they are cancelled" in capsys.readouterr().out


def test_nothing_is_submitted_where_slurm_does_not_tell_what_it_has(
    on_slurm, tmp_path, monkeypatch
):
    def silent(folder: Path) -> list[str]:
        raise slurm.Unreachable("squeue: Socket timed out")

    monkeypatch.setattr(slurm, "submitted_from", silent)
    monkeypatch.setattr(cluster, "_submit", lambda *_: pytest.fail("submitted"))
    with pytest.raises(InvalidSweep) as caught:
        on_slurm(["seed=2"])
    said = str(caught.value.error)
    assert "Socket timed out" in said and f"-m resume={tmp_path / 'sweep'}" in said


def test_a_failure_of_the_first_process_is_the_end_of_a_run(tmp_path):
    pickles = [tmp_path / "0.pkl", tmp_path / "1.pkl"]
    failed: list[Any] = [None, None]
    tasks = [
        SimpleNamespace(
            paths=SimpleNamespace(result_pickle=pickles[n]), exception=lambda n=n: failed[n]
        )
        for n in (0, 1)
    ]
    job = SimpleNamespace(task=tasks.__getitem__, num_tasks=2)
    assert not cluster._has_result(job)
    pickles[0].touch()
    assert not cluster._has_result(job), "it went well, and another is at its end"
    failed[0] = RuntimeError()
    assert cluster._has_result(job), "the others may wait for it"
    failed[0] = None
    pickles[1].touch()
    assert cluster._has_result(job)
