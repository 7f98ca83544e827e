"""A sweep's page, out of made-up folders; pages made afterwards by the command."""

from __future__ import annotations

import json
import re
import time

import pytest

from gfn_runner.callbacks.live_report import LiveReport, end_pages
from gfn_runner.errors import UserError
from gfn_runner.report import run_page
from gfn_runner.report.__main__ import main, write_pages
from gfn_runner.report.history import History
from gfn_runner.report.sweep_page import colors_of, write_sweep_page
from gfn_runner.report.sweep_runs import read_sweep

from ..report_folders import (
    FAILED,
    curves_of,
    grid,
    make_run,
    make_sweep,
    plots_of,
    reloads,
    rows_of,
    sweep_page,
)


def test_a_search_is_a_sweep_whose_next_jobs_are_not_known(tmp_path):
    lines = ["hydra/sweeper=search", "hydra.sweeper.direction=minimize"]
    values = (("ok", 0.5), ("ok", 0.25), ("failed", None))
    jobs = [
        {"overrides": [f"optimizer.lr={n + 1 / 3}"], "state": state, "value": value}
        for n, (state, value) in enumerate(values)
    ]
    folder = make_sweep(tmp_path / "s", *jobs, overrides=lines, searches=True)
    for n in range(3):
        make_run(folder / str(n), task={"_target_": "gfn_runner.tasks.random_number.RandomNumbers"})
    LiveReport(pause=0).begin(folder / "2").write("running")
    html = (folder / "report.html").read_text()
    assert "Best of the search so far: run 1, exact_kl 0.25." in html
    assert [row[2] for row in rows_of(html)[1:]] == ["0.3333", "1.333", "2.333"]
    assert "hydra/sweeper=search" in html and reloads(html), "others may follow"
    assert "all runs of it" in (folder / "2" / "report.html").read_text()
    record = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(record | {"searches": False}))
    html = sweep_page(folder)
    assert "Best of the search: run 1" in html and not reloads(html)


def fail_at_start(folder):
    """A job that has no config yet."""
    folder.mkdir()
    reason = "the run has failed: task.data: nothing there"
    (folder / "run.log").write_text(f"ERROR gfn_runner.app: {reason}\n")


def test_a_sweeps_page_lists_every_job_with_its_state(tmp_path):
    jobs = grid(optimizer__lr=("0.001", "0.0001", "1"), seed=(0, 1))
    killed = {"overrides": jobs[5].split(), "state": "cancelled", "why": "by SLURM"}
    sweep = make_sweep(tmp_path / "s", *jobs[:5], killed, overrides=["optimizer.lr=1e-3,1e-4,1"])
    make_run(sweep / "0")
    make_run(sweep / "1", steps=4, finished=False)
    failed = make_run(sweep / "2", steps=3, finished=False)
    (failed / "run.log").write_text(FAILED)
    fail_at_start(sweep / "3")
    make_run(sweep / "5", steps=4, finished=False)
    (sweep / ".submitit").mkdir()
    html = sweep_page(sweep)
    header, *rows = rows_of(html)
    assert header == [
        "run", "state", "optimizer.lr", "seed", "step", "minutes", "vote accuracy (%)",
        "single accuracy (%)", "why",
    ]  # fmt: skip
    assert [row[:5] for row in rows] == [
        ["0", "ok", "0.001", "0", "6/6"], ["1", "running", "0.001", "1", "4/6"],
        ["2", "failed", "0.0001", "0", "3/6"], ["3", "failed", "0.0001", "1", ""],
        ["4", "waiting", "1", "0", ""], ["5", "cancelled", "1", "1", "4/6"],
    ]  # fmt: skip
    assert rows[0][5:8] == ["2.0", "25.0", "50.0"] and rows[1][6:8] == ["25.0*", "50.0*"]
    why = ["ValueError: the loss is not finite", "task.data: nothing there", "", "by SLURM"]
    assert [row[-1] for row in rows[2:]] == why
    assert re.findall(r'<a href="([^"]*)"', html) == [f"{n}/report.html" for n in (0, 1, 2, 5)]
    assert reloads(html)
    assert "6 runs: 1 ok, 1 running, 2 failed, 1 waiting, 1 cancelled." in html
    assert "gfn_runner -m optimizer.lr=1e-3,1e-4,1</code>" in html


def test_a_sweeps_curves_are_of_all_runs_and_coloured_by_what_was_varied(tmp_path):
    sweep = make_sweep(tmp_path / "s", *grid(optimizer__lr=(0.001, 0.0001), seed=(0, 1)))
    for n in range(3):
        make_run(sweep / str(n), steps=4, finished=False)
    html = sweep_page(sweep)
    assert curves_of(html, "vote accuracy (%)") == {
        f"run {n}: optimizer.lr={lr}, seed={seed}": (4, 25)
        for n, lr, seed in ((0, 0.001, 0), (1, 0.001, 1), (2, 0.0001, 0))
    }
    colors = colors_of(read_sweep(sweep))
    assert colors[0] == colors[1] != colors[2] == colors[3]
    legend = re.findall(r'<li><i style="background:(.*?)"></i>(.*?)</li>', html)
    assert legend == [(colors[0], "optimizer.lr=0.001"), (colors[2], "optimizer.lr=0.0001")]
    assert "None has finished yet." in html
    # A row and its curves have one id: pointing at one of them highlights all.
    for figure in plots_of(html).values():
        assert [own["uid"] for own in figure["data"]] == ["run0", "run1", "run2"]
    assert re.findall(r'<tr data-run="(\w+)"', html) == ["run0", "run1", "run2", "run3"]


def test_fifty_finished_runs_are_compared_on_one_page_and_read_once(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "s", *grid(optimizer__lr=range(25), seed=(0, 1)))
    for n in range(50):
        make_run(sweep / str(n), seed=n % 2, optimizer={"lr": n // 2})
    html = sweep_page(sweep)
    assert [row[0] for row in rows_of(html)][1:] == [str(n) for n in range(50)]
    assert len(curves_of(html, "loss")) == 50
    assert not reloads(html) and len(html) < 3_000_000
    _, heading, compared = html.partition("<h2>Finished runs side by side</h2>")
    assert heading and re.findall(r"<h\d>.*?</h\d>", compared) == ["<h3>arithmetic</h3>"]
    assert "<td>GFlowNet (optimizer.lr=24)</td><td>2</td>" in compared
    assert "gfn_runner.report " in compared
    monkeypatch.setattr(History, "_add", lambda *_: 1 / 0)
    write_sweep_page(sweep)


def test_a_job_writes_the_sweeps_page_too_but_not_all_the_time(tmp_path):
    sweep = make_sweep(tmp_path / "s", *grid(seed=(0, 1)))
    folder = make_run(sweep / "0", steps=2, finished=False)
    pages = LiveReport(pause=1000).begin(folder)
    path = sweep / "report.html"
    pages.write("running")
    assert [row[1] for row in rows_of(path.read_text())] == ["state", "running", "waiting"]
    path.write_text("another job's")
    # Neither so soon after another job, nor so soon after its own.
    LiveReport(pause=1000).begin(folder).evaluated(2, [])
    pages.pause = 0
    pages._sweep_due = time.time() + 5
    pages.evaluated(2, [])
    assert path.read_text() == "another job's"
    LiveReport(pause=0).begin(folder).evaluated(2, [])
    assert len(rows_of(path.read_text())) == 3
    pages.write("interrupted", at_once=True)
    assert [row[1] for row in rows_of(path.read_text())] == ["state", "interrupted", "waiting"]


def test_a_job_without_a_config_only_has_its_row(tmp_path, caplog):
    sweep = make_sweep(tmp_path / "s", *grid(seed=(0, 1)))
    fail_at_start(sweep / "0")
    end_pages(sweep / "0")
    states = [row[1] for row in rows_of((sweep / "report.html").read_text())]
    assert states[1:] == ["failed", "waiting"]
    assert not (sweep / "0/report.html").exists() and not caplog.records


def test_pages_are_made_afterwards_for_all_runs_and_their_sweeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = make_sweep(tmp_path / "out/s", *grid(seed=(0, 1)))
    make_run(sweep / "0")
    make_run(tmp_path / "out/x/alone", steps=2, finished=False)
    main(["--pages", "out"])
    names = ["out/s/0/report.html", "out/s/report.html", "out/x/alone/report.html"]
    assert sorted(capsys.readouterr().out.split()) == names
    assert all((tmp_path / name).is_file() for name in names)
    # Runs right below a folder that was named are a sweep too.
    main(["--pages", "out/x"])
    assert (tmp_path / "out/x/report.html").is_file()
    assert not (tmp_path / "out/report.html").exists()


def test_user_errors_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "good")
    make_run(tmp_path / "bad")
    (tmp_path / "bad/metrics.json").write_text("{")
    for arguments, message in (
        (["--pages", "none"], "none: there is no such folder"),
        (["--pages", "good", "--out", "x"], "--out: given with --pages"),
        (["--pages", "good", "bad"], "bad/metrics.json: cannot be read"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and message in capsys.readouterr().err
    # The others have theirs all the same.
    assert (tmp_path / "good/report.html").is_file() and not (tmp_path / "bad/report.html").exists()

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", "r/report.html")

    monkeypatch.setattr(run_page, "write_atomically", refused)
    with pytest.raises(UserError, match="its page cannot be written"):
        write_pages(["good"])
