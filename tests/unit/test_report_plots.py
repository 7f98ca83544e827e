"""Plots and the history that they show; how pages are written, while a run trains too."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from gfn_runner.callbacks import live_report
from gfn_runner.callbacks.live_report import LiveReport, end_pages
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.report import run_page
from gfn_runner.report.history import History
from gfn_runner.report.names import Name
from gfn_runner.report.plots import MOST_POINTS, plot
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.json_lines import read_lines, write_lines

from ..report_folders import add_records, make_run, training


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def curve(mode, x, y):
    return {"x": x, "y": y, "mode": mode, "name": ""}


def test_long_curves_are_means_and_of_dots_every_kth():
    steps = list(range(10 * MOST_POINTS))
    values = [float(step % 10) for step in steps]
    made = plot(Name("t"), [curve("lines", steps, values), curve("markers", steps, steps)])
    line, marks = made.figure["data"]
    assert len(line["x"]) == MOST_POINTS and set(line["y"]) == {4.5} and line["x"][0] == 4.5
    assert len(marks["x"]) == MOST_POINTS and marks["y"][1] == 10
    assert made.help == "Lines are means of 10 steps, dots one in 10."


def test_a_logarithmic_axis_spans_six_decades_at_most_and_nothing_below_zero():
    values = [0.0, 4e-13, *[5.0] * 20, 50.0]
    made = plot(Name("loss"), [curve("lines", list(range(23)), values)], log=True)
    assert made.figure["layout"]["yaxis"]["range"] == pytest.approx([-4.35, 1.75], abs=0.01)
    plain = plot(Name("loss"), [curve("lines", [1, 2], [-1.0, 100.0])], log=True)
    assert "yaxis" not in plain.figure["layout"]


def test_history_reads_what_was_added_and_waits_for_complete_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    history = History(path)
    assert history.read().last_step is None
    whole = "".join(json.dumps(training(step)) + "\n" for step in (1, 2))
    rest = json.dumps(training(3)) + "\n"
    path.write_text(whole + rest[:20])
    assert history.read().last_step == 2
    # What was read is not read again.
    path.write_text("#" * len(whole) + rest)
    assert history.read().last_step == 3 and history.get("train/loss")[0] == [1, 2, 3]


def test_what_a_resumed_run_repeats_replaces_what_came_after_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [1, 2, 3, 4, 2, 3]
    write_lines(path, [{"step": s, "time": i, "train/loss": i} for i, s in enumerate(steps)])
    with path.open("a") as file:
        file.write('{"step": 5, "tra\n')
    assert History(path).read().get("train/loss") == ([1, 2, 3], [0.0, 4.0, 5.0])


def test_nobody_reads_half_a_page(tmp_path):
    """A reader beside several writers always finds one of the complete texts."""
    path = tmp_path / "report.html"
    texts = [letter * 200_000 for letter in "abc"]
    write_atomically(path, texts[0], durable=False)
    ended, found = threading.Event(), set()

    def read():
        while not ended.is_set():
            found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for text in texts:
            write_atomically(path, text, durable=False)
    ended.set()
    reader.join()
    assert found <= set(texts)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new", durable=False)
    monkeypatch.undo()
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_what_a_killed_process_has_left_of_a_page_is_removed(tmp_path):
    path, left, young = (tmp_path / n for n in ("p.html", ".p.html.7.part", ".p.html.8.part"))
    for other in (left, young):
        other.write_text("half")
    os.utime(left, (1000, 1000))
    write_atomically(path, "new", durable=False)
    assert sorted(tmp_path.iterdir()) == [young, path]


def samples():
    condition = Condition(key="q", group="3_operands", prompt="1 + 1 = ?", answer=2, terms=())
    return [ConditionSamples(condition, [], ["new"] * 20, [-1.0] * 20, [-2.0] * 20)] * 6


def test_every_evaluation_leaves_its_samples_and_a_page(tmp_path):
    folder = make_run(tmp_path / "r", steps=2, finished=False)
    pages = LiveReport().begin(folder)
    pages.write("running")
    assert "None yet" in (folder / "report.html").read_text()
    add_records(folder, training(3))
    pages.evaluated(3, samples())
    html = (folder / "report.html").read_text()
    assert "<dd>3 of 6</dd>" in html and "<td>new</td>" in html and "at optimizer step 3" in html
    kept = read_lines(folder / "samples_newest.jsonl")
    assert len(kept) == 4 and len(kept[0]["singles"]) == len(kept[0]["log_pf"]) == 8
    pages.write("interrupted", at_once=True)
    assert "interrupted</b>" in (folder / "report.html").read_text()


def test_a_page_that_fails_is_one_warning_and_ends_no_run(tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "r", steps=2, finished=False)

    monkeypatch.setattr(live_report, "write_lines", full_disk)
    monkeypatch.setattr(run_page, "write_atomically", full_disk)
    pages = LiveReport().begin(folder)
    for step in range(3):
        pages.evaluated(step, samples())
    monkeypatch.setattr(run_page, "render", lambda *_, **__: 1 / 0)
    pages.write("running")
    assert [record.getMessage() for record in caplog.records] == [
        "report page not written: [Errno 28] No space left on device; the run continues",
        "report page not written: ZeroDivisionError: division by zero; the run continues",
    ]


def test_pages_at_the_end_are_written_unless_they_are_off(tmp_path):
    for when in ("off", "end", "live"):
        folder = make_run(tmp_path / when, callbacks={"report": {"pages": when}})
        end_pages(folder)
        assert (folder / "report.html").is_file() == (when != "off")
