"""A sweep's record: what may not be mixed, why a run has failed; and its table."""

from __future__ import annotations

import re

import pytest

from gfn_runner.errors import UserError
from gfn_runner.runtime.sweep_record import RECORD, Job, Sweep, log_length, reason
from gfn_runner.sweeps.table import show_sweep


def jobs(*lines: str) -> list[Job]:
    return [Job(number, ["task=x", line], str(number)) for number, line in enumerate(lines)]


def test_a_record_is_read_as_it_was_written(tmp_path):
    sweep = Sweep(tmp_path, ["seed=0,1", "hydra/launcher=slurm"])
    first, second = sweep.plan(jobs("seed=0", "seed=1"))
    first.state, first.value, first.metrics, first.job_id = "ok", 0.5, {"accuracy": 0.5}, "7_0"
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
        file.write(
            f"WARNING x: y\n{mark}Traceback (most recent call last):\n  line\nValueError: z\n"
        )
        file.write("INFO torch.x: bye\n  2\n")
    assert reason(tmp_path, since) == "ValueError: z"
    assert reason(tmp_path / "nowhere") == "" and log_length(tmp_path / "nowhere") == 0


def test_the_table_names_what_differs_and_every_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    sweep = Sweep(tmp_path)
    first, second, third = sweep.plan(jobs("seed=0", "seed=1", "seed=[2]"))
    first.state, first.metrics, first.minutes, first.again = (
        "ok",
        {"vote_accuracy": 0.5},
        2.0,
        False,
    )
    second.state, second.why = "failed", "ValueError: a|b"
    third.state, third.job_id = "running", "9_2"
    show_sweep(sweep)
    shown = capsys.readouterr().out
    assert "sweep task=x" in shown and shown.count("task=x") == 1
    assert "50.0" in shown and "2.0" in shown and "seed=[2]" in shown
    assert "#1 failed: ValueError: a|b" in shown
    assert "1 of 3 runs are ok (1 had finished before)" in shown
    assert "scancel 9_2" in shown and f"resume={tmp_path}" in shown
    written = (tmp_path / "sweep.md").read_text()
    assert "| 1 | seed=1 | failed |  |  | 1 | ValueError: a\\|b |" in written


METRICS = {
    "kl": 0.1234567, "kl_floor": 0.0456, "invalid_share": 0.0123, "exact_kl": 0.0987, "exact_tv": 0.2345,
}  # fmt: skip


def searched(folder, values=(0.8130913055203, 0.4071036058197), n_metrics=5) -> Sweep:
    """A search over four keys, the exact values of which its record has."""
    sweep = Sweep(folder)
    lines = [
        [
            "task=random_number",
            f"callbacks.reward_tempering.end={end}",
            "optimizer.lr=0.0007453942447208346",
            f"callbacks.replay_buffer.probability={0.1 + end / 10}",
            "lm.lora.rank=32",
            f"callbacks.replay_buffer.alpha={number}",
            f"lm.lora.alpha={2 * number}",
        ]
        for number, end in enumerate(values)
    ]
    for job in sweep.plan([Job(n, own, str(n)) for n, own in enumerate(lines)]):
        job.state, job.minutes = "ok", 12.25
        job.metrics = {
            f"{i or ''}{name}": v for i in range(n_metrics // 5) for name, v in METRICS.items()
        }
    sweep.write()
    return sweep


@pytest.mark.parametrize("n_metrics", [5, 15])
def test_a_search_is_readable_in_a_narrow_terminal(tmp_path, capsys, monkeypatch, n_metrics):
    monkeypatch.setenv("COLUMNS", "80")
    show_sweep(searched(tmp_path, n_metrics=n_metrics))
    shown = capsys.readouterr().out
    table = shown[shown.index("overrides") : shown.index("2 of 2 runs")]
    rows = [line for line in table.splitlines() if " is " not in line]
    assert max(map(len, rows)) <= 80 and len(rows) < 15 * n_metrics / 5
    assert "…" not in table and "folder" not in table, (
        "a folder that is the run's number says nothing"
    )
    # Whole values and whole numbers, of both runs.
    for text in (
        "end=0.8131",
        "end=0.4071",
        "probability=0.1813",
        "12.2",
        "0.123",
        "0.0456",
        "1.2",
    ):
        assert re.search(rf"(^|\s){re.escape(text)}(\s|$)", table), text
    assert table.count("0.0987") == 2 * n_metrics / 5
    assert "shares are in %" in table
    # Shared by two keys, so in full; the others are named once.
    assert "callbacks.replay_buffer.alpha=1" in table and "lm.lora.alpha=2" in table
    assert (
        "end is callbacks.reward_tempering.end, probability is callbacks.replay_buffer.probability"
        in table
    )
    assert shown.startswith("sweep task=random_number optimizer.lr=0.0007454 lm.lora.rank=32")


def test_a_search_in_a_wide_terminal_is_one_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    show_sweep(searched(tmp_path))
    first = next(li for li in capsys.readouterr().out.splitlines() if "end=0.8131" in li)
    assert first.split() == [
        "0", "end=0.8131", "ok", "0.123", "0.0456", "1.2", "0.0987", "0.234", "12.2",
    ]  # fmt: skip


def test_the_written_table_has_whole_keys_and_four_digits(tmp_path):
    show_sweep(searched(tmp_path))
    written = (tmp_path / "sweep.md").read_text()
    assert (
        "callbacks.reward_tempering.end=0.8131 callbacks.replay_buffer.probability=0.1813"
        in written
    )
    assert written.startswith("# sweep task=random_number optimizer.lr=0.0007454 lm.lora.rank=32")
    assert "end=0.8130913055203" in (tmp_path / RECORD).read_text()


def test_runs_that_four_digits_would_make_one_keep_all_of_theirs(tmp_path):
    show_sweep(sweep := Sweep(tmp_path, [], jobs("x=0.12345", "x=0.123451", "x=1.500001", "x=2.0")))
    written = (sweep.folder / "sweep.md").read_text()
    assert all(f"| {x} |" in written for x in ("x=0.12345", "x=0.123451", "x=1.5", "x=2.0"))
