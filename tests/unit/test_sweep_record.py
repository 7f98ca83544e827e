"""A sweep's record: what may not be mixed, why a run has failed; and its table."""

from __future__ import annotations

import pytest

from gfn_runner.errors import UserError
from gfn_runner.runtime.sweep_record import RECORD, Job, Sweep, log_length, reason
from gfn_runner.sweeps.table import show_sweep
from tests.report_folders import make_run


def jobs(*lines: str) -> list[Job]:
    return [Job(number, ["task=x", line], str(number)) for number, line in enumerate(lines)]


def test_a_record_is_read_as_it_was_written(tmp_path):
    sweep = Sweep(tmp_path, ["seed=0,1", "hydra/launcher=slurm"])
    first, second = sweep.plan(jobs("seed=0", "seed=1"))
    first.state, first.value, first.job_id = "ok", 0.5, "7_0"
    second.state, second.why = "failed", "no model"
    sweep.write()
    assert Sweep.read(tmp_path) == sweep
    assert sweep.failures == [second] and sweep.common == ["task=x"]
    assert first.beside(sweep.common) == ["seed=0"]


def test_a_job_that_is_planned_again_keeps_its_id_and_nothing_else(tmp_path):
    sweep = Sweep(tmp_path)
    (job,) = sweep.plan(jobs("seed=0"))
    job.state, job.why, job.job_id = "cancelled", "SLURM: CANCELLED", "7"
    (again,) = sweep.plan(jobs("seed=0"))
    assert (again.state, again.why, again.job_id) == ("waiting", "", "7")
    assert sweep.jobs == [again]


def test_further_jobs_join_those_that_are_known(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.plan(jobs("seed=0", "seed=1")[1:])
    sweep.plan(jobs("seed=0"))
    assert [job.number for job in sweep.jobs] == [0, 1]


def test_runs_that_would_be_mixed_up_are_refused_all_at_once(tmp_path):
    sweep = Sweep(tmp_path)
    sweep.plan(jobs("seed=0", "seed=1"))
    for name in "01":
        (tmp_path / name).mkdir()
    (tmp_path / "0" / "config.yaml").touch()
    before = (tmp_path / RECORD).read_text()
    wrong = [*jobs("seed=7", "seed=1"), Job(2, ["task=x", "seed=2"], "1")]
    with pytest.raises(UserError) as caught:
        sweep.plan(wrong)
    assert [p.where for p in caught.value.problems] == ["hydra.sweep.dir", "hydra.sweep.subdir"]
    assert "seed=0" in str(caught.value) and "would share the folder 1" in str(caught.value)
    assert (tmp_path / RECORD).read_text() == before
    # Where no run has begun there is nothing to mix.
    assert sweep.plan(jobs("seed=0", "seed=8"))[1].overrides == ["task=x", "seed=8"]


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / RECORD).write_text('{"jobs": [{"nummer": 1}]}')
    with pytest.raises(UserError, match="nummer"):
        Sweep.read(tmp_path)


def test_the_reason_is_the_last_one_of_this_start(tmp_path):
    log = tmp_path / "run.log"
    mark = "ERROR gfn_runner.train: the run has failed: "
    log.write_text(f"{mark}lm.name: no weights\n    allowed: others\n")
    assert reason(tmp_path) == "lm.name: no weights"
    since = log_length(tmp_path)
    assert reason(tmp_path, since) == ""
    with log.open("a") as file:
        file.write(f"WARNING x: y\n{mark}Traceback (most recent call last):\n  line\n")
        file.write("ValueError: z\nINFO torch.x: bye\n  2\n")
    assert reason(tmp_path, since) == "ValueError: z"
    assert reason(tmp_path / "nowhere") == "" and log_length(tmp_path / "nowhere") == 0


def test_the_table_names_what_differs_and_every_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    sweep = Sweep(tmp_path)
    first, second, third = sweep.plan(jobs("seed=0", "seed=1", "seed=[2]"))
    first.state, first.again = "ok", False
    make_run(tmp_path / "0")
    second.state, second.why = "failed", "ValueError: a|b"
    third.state, third.job_id = "running", "9_2"
    show_sweep(sweep)
    shown = capsys.readouterr().out
    assert "sweep task=x" in shown and shown.count("task=x") == 1
    assert "25.0" in shown and "2.0" in shown and "[2]" in shown
    assert "#1 failed: ValueError: a|b" in shown
    assert "1 of 3 runs are ok (1 had finished before)" in shown
    assert "scancel 9_2" in shown and f"resume={tmp_path}" in shown
    written = (tmp_path / "sweep.md").read_text()
    assert "| 1 | failed | 1 |  |  |  |  | ValueError: a\\|b |" in written
