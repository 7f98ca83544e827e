"""A run's page, out of made-up folders: plots, states, reloading, results, samples."""

from __future__ import annotations

import json
import os
import re
import time
from html.parser import HTMLParser

import pytest

from gfn_runner.report.runs import read_run
from gfn_runner.report.states import failure
from gfn_runner.runtime.json_lines import write_lines

from ..report_folders import (
    FAILED,
    PHASES,
    PROMPTING,
    add_records,
    curves_of,
    facts_of,
    make_run,
    page_of,
    plots_of,
    reloads,
    sample,
    training,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The page of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "r"
    return page_of(make_run(folder, overrides=["seed=3", "task.terminator=' .'"]))


def state(folder, known=None):
    return read_run(folder, known).state


def test_curves_are_what_was_logged(finished):
    assert curves_of(finished, "vote accuracy (%)") == {
        "3 operands": (6, 25), "3 operands, all conditions": (6, 25),
        "4 operands": (6, 25), "4 operands, all conditions": (6, 25),
    }  # fmt: skip
    by_source = {"on-policy": (6, 1), "tempered": (4, -1), "stored": (5, 0)}
    assert curves_of(finished, "mean log R in training (nats)") == by_source
    phases = plots_of(finished)["seconds per optimizer step, by phase"]["data"]
    assert {own["name"]: own["y"][-1] for own in phases} == PHASES
    assert {own["stackgroup"] for own in phases} == {"all"}
    assert plots_of(finished)["gradient norm"]["layout"]["yaxis"]["type"] == "log"


def test_a_page_has_state_results_samples_command_config_and_log(finished):
    facts = facts_of(finished)
    assert facts["state"] == '<b class="badge good">ok</b>'
    assert facts["optimizer step"] == "6 of 6" and facts["time"] == "2 min"
    assert facts["method"] == "GFlowNet, JointBalance" and facts["commit"] == "c0ffeec0ff"
    for shown in (
        "python -m gfn_runner task=arithmetic seed=3 &#39;task.terminator=",
        "max_steps: 6",
        "something &lt;odd&gt;",
        "<td>this run</td><td>25.0\n10–40</td><td>25.0</td>",
        "<td>1 + 1 = ?</td><td>2</td><td>the last</td><td>−1.50</td><td>−0.25</td>",
        "<td></td><td></td><td>(empty)</td><td>−9.00</td>",
    ):
        assert shown in finished
    assert not reloads(finished)


def test_new_scalars_have_a_plot_and_the_large_dots_of_em_are_the_e_steps(tmp_path):
    """Evaluations on the way are of the policy; after the M-step another model gives R."""
    folder = make_run(tmp_path / "r")
    new = {"train/buffer_age": 12.0, "train/tokens_per_second": 900.0, "train/kl_penalty": 0.5}
    last = {"e_step/log_reward/3_operands": -2.5, "final/log_reward/3_operands": -9.0}
    add_records(folder, training(7, **new), {"step": 7, **last})
    html = page_of(folder)
    age = "age of the replay buffer"
    assert curves_of(html, f"{age} (optimizer steps)") == {age: (7, 12)}
    assert curves_of(html, "tokens per second") == {"tokens per second": (7, 900)}
    assert list(plots_of(html))[-1] == "kl penalty"
    curves = curves_of(html, "mean log R, evaluated (nats)")
    assert curves["3 operands, all conditions"] == (7, -2.5)
    assert all(y != -9 for _, y in curves.values())


def test_pages_need_no_network(tmp_path):
    folder = make_run(tmp_path / "r")
    hostile = '</script><script src="https://x.y/z.js"></script>'
    write_lines(folder / "samples.jsonl", [sample(hostile)])
    add_records(folder, {"step": 6, f"eval/vote_accuracy/{hostile}": 0.5})
    html = page_of(folder)
    named = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda _, attributes: named.update(name for name, _ in attributes)
    parser.feed(html)
    assert named and not named & {"src", "href", "srcset", "data"}
    assert not re.search(r"@import|url\(", html)
    assert "&lt;script src=" in html  # as text, in the table of samples
    assert len(html) < 2_500_000, "Plotly is compressed"


def test_an_unfinished_runs_page_reloads_itself_and_a_finished_ones_does_not(tmp_path):
    html = page_of(make_run(tmp_path / "a", steps=4, finished=False))
    assert reloads(html) and "badge busy" in html
    assert facts_of(html)["optimizer step"] == "4 of 6"
    interrupted = page_of(tmp_path / "a", "interrupted")
    assert not reloads(interrupted) and '<b class="badge odd">interrupted</b>' in interrupted


def test_time_left_is_that_of_the_newest_part(tmp_path):
    folder = make_run(tmp_path / "r", steps=4, wanted=14, finished=False)
    now = time.time()
    records = [training(step, time=now + 5 * step) for step in range(1, 5)]
    # It was begun a day before, and has been resumed.
    records[0]["time"] -= 86400
    write_lines(folder / "metrics.jsonl", records)
    assert state(folder).left == pytest.approx(50, abs=0.1)


def test_a_failed_runs_page_has_the_reason_and_the_end_of_the_log(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    (folder / "run.log").write_text("WARNING before\n" + FAILED)
    html = page_of(folder)
    assert "<p>failed: ValueError: the loss is not finite</p>" in html
    assert "badge bad" in html and not reloads(html)
    assert html.index("WARNING before") < html.index("Course of training")
    # It may have gone on after its failure.
    later = time.time() + 60
    os.utime(folder / "metrics.jsonl", (later, later))
    assert state(folder).name == "running"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (FAILED, "ValueError: the loss is not finite"),
        ("ERROR gfn_runner.app: the run has failed: lm.name: given\n  allowed: y", "lm.name: given"),
        ("ERROR other: out of luck", "out of luck"),
        ("WARNING a: b", ""),
        (FAILED + "WARNING later: x", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_in_a_log(tmp_path, log, reason):
    (tmp_path / "run.log").write_text(log)
    assert failure(tmp_path) == reason


def test_a_run_that_writes_nothing_is_silent(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    before = time.time() - 5000
    for path in folder.iterdir():
        os.utime(path, (before, before))
    silent = state(folder)
    assert silent.name == "silent" and silent.why.startswith("nothing written for 1 h 23 min")
    assert not reloads(page_of(folder))
    # Its own process knows better: it is at a long evaluation.
    assert state(folder, "running").name == "running"


def test_a_baseline_that_trains_nothing_has_a_table_and_no_curves(tmp_path):
    folder = make_run(tmp_path / "r", baseline={"_target_": PROMPTING}, steps=0)
    (folder / "metrics.jsonl").unlink()
    metrics = {"base_0_shot/vote_accuracy/3_operands": 0.75, "run/minutes": 1.0, "run/steps": 0.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    html = page_of(folder)
    assert plots_of(html) == {} and "No curves: the run trains nothing." in html
    assert "<td>75.0</td>" in html and "<h1>arithmetic, Prompting: " in html
    assert not reloads(html) and len(html) < 100_000


def test_samples_are_the_newest_ones(tmp_path):
    folder = make_run(tmp_path / "r", steps=4, finished=False)
    write_lines(folder / "samples_newest.jsonl", [sample("on the way", step=4)])
    html = page_of(folder)
    assert "<td>on the way</td>" in html and "at optimizer step 4 (samples_newest.jsonl)" in html
    write_lines(folder / "samples.jsonl", [sample("at the end")])
    later = time.time() + 60
    os.utime(folder / "samples.jsonl", (later, later))
    assert "<td>at the end</td>" in page_of(folder)


def test_runs_of_one_step_and_of_none(tmp_path):
    html = page_of(make_run(tmp_path / "r", steps=1, finished=False))
    assert "NaN" not in json.dumps(plots_of(html))
    html = page_of(make_run(tmp_path / "none", steps=0, finished=False))
    assert plots_of(html) == {} and "<li>loss</li>" in html and "<li>vote accuracy</li>" in html
