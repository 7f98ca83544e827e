"""Pages that real runs leave: while they train, when they end or fail, of baselines and of sweeps."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import yaml

from gfn_runner.callbacks import live_report
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.live_report import LiveReport
from gfn_runner.report.plots import run_charts
from gfn_runner.report.runs import read_run
from tests.report_folders import facts_of
from tests.runs import SMALL, exit_code, lines_of, run

QUICK = ("callbacks.evaluation.every_n_steps=1", "evaluation.baseline_shots=[]")


def test_a_finished_runs_page(finished):
    page = (finished / "report.html").read_text()
    assert facts_of(page)["optimizer step"] == "4 of 4" and "badge good" in page
    n_plots = sum(len(plots) for _, _, plots in run_charts(read_run(finished)).sections)
    assert "<body data-refresh" not in page and page.count('<div class="plot">') == n_plots
    phases = "seconds per optimizer step, by phase"
    for title in ("vote accuracy (%)", "replay buffer (strings)", phases):
        assert f"<h4>{title}</h4>" in page
    newest = lines_of(finished / "samples_newest.jsonl")
    assert {record["step"] for record in newest} == {4} and newest[0]["singles"]


def test_the_page_is_written_anew_at_every_evaluation(tmp_path, monkeypatch):
    seen = []
    whole = live_report.write_run_page

    def recorded(folder, known):
        path = whole(folder, known)
        page = path.read_text()
        seen.append((facts_of(page)["optimizer step"], known, "<body data-refresh=" in page))
        return path

    monkeypatch.setattr(live_report, "write_run_page", recorded)
    run(tmp_path / "r", "trainer.max_steps=4", *QUICK, "callbacks.evaluation.every_n_steps=2")
    assert seen == [
        ("0 of 4", "running", True), ("2 of 4", "running", True), ("4 of 4", "running", True),
        ("4 of 4", None, False),
    ]  # fmt: skip


def test_only_the_first_rank_writes(monkeypatch):
    calls = []
    callback = LiveReport()
    monkeypatch.setattr(callback, "write", lambda state: calls.append(state))
    monkeypatch.setattr(callback, "evaluated", lambda *_: calls.append("evaluated"))
    module = SimpleNamespace(final=False)
    trainer = SimpleNamespace(global_step=1, callbacks=[EvaluationCallback()])
    monkeypatch.setattr(live_report, "is_rank_zero", lambda: False)
    callback.on_train_start(trainer, module)
    callback.on_validation_end(trainer, module)
    assert calls == []
    monkeypatch.setattr(live_report, "is_rank_zero", lambda: True)
    callback.on_train_start(trainer, module)
    callback.on_validation_end(trainer, module)
    module.final = True
    callback.on_validation_end(trainer, module)
    assert calls == ["running", "evaluated"]


@pytest.mark.slow
def test_a_sweep_with_a_failing_job(tmp_path):
    """The second job's learning rate breaks the policy at its first step."""
    lines = [
        *SMALL,
        "trainer.max_steps=3",
        "callbacks.evaluation.every_n_steps=1",
        f"output={tmp_path}",
    ]
    assert exit_code("-m", *lines, "optimizer.lr=1e-4,1e30,1e-3") == 1
    (page,) = tmp_path.glob("arithmetic/multirun/*/*/report.html")
    text = page.read_text()
    configs = [page.parent / str(number) / "config.yaml" for number in range(3)]
    assert [yaml.safe_load(c.read_text())["optimizer"]["lr"] for c in configs] == [1e-4, 1e30, 1e-3]
    rows = re.findall(r'<tr data-run="run(\d)">.*?<b class="badge \w+">(.*?)</b>', text)
    assert rows == [("0", "ok"), ("1", "failed"), ("2", "ok")]
    assert "<body data-refresh" not in text
    assert "logits are not finite" in text and "Finished runs side by side" in text
    failed = (page.parent / "1/report.html").read_text()
    assert "logits are not finite" in failed and "badge bad" in failed
    assert "<body data-refresh" not in failed
    assert "badge good" in (page.parent / "0/report.html").read_text()
