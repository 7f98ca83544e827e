"""Pages of runs and sweeps, out of made-up folders: charts, states, refreshing, writing, mistakes."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import threading
import time
from html.parser import HTMLParser

import pytest
import yaml

from gfn_runner.config.schemas import ReportSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.errors import UserError
from gfn_runner.report import live, run_page, web
from gfn_runner.report.__main__ import main
from gfn_runner.report.charts import MOST_POINTS, Curve, log_ticks, number, svg, thinned, ticks
from gfn_runner.report.history import History
from gfn_runner.report.live import LivePages
from gfn_runner.report.names import Name, column_title, is_share, name_of, spoken
from gfn_runner.report.pages import Badge, Folded, Heading, Link, Live, Table, Text, markdown
from gfn_runner.report.run_page import write_run_page
from gfn_runner.report.runs import read_run
from gfn_runner.report.states import duration, failure, state_of
from gfn_runner.report.sweep_page import colors_of, write_sweep_page
from gfn_runner.report.sweeps import Sweep
from gfn_runner.report.web import html_page, write_page
from gfn_runner.runtime.json_lines import write_lines

ARITHMETIC = "gfn_runner.tasks.arithmetic.IntegerArithmetic"
PROMPTING = "gfn_runner.baselines.methods.Prompting"
FAILED = (
    "ERROR gfn_runner.app: the run has failed: Traceback (most recent call last):\n"
    '  File "x.py", line 3, in step\n    raise ValueError\n'
    "ValueError: the loss is not finite\nat step 3\n"
)
PHASES = {
    "sample": 0.3,
    "reward": 0.2,
    "policy": 0.2,
    "objective": 0.1,
    "backward": 0.1,
    "other": 0.1,
}


def training(step, **values):
    """A record of an optimizer step: by turns on-policy, tempered, replayed."""
    turn = step % 3
    record = {
        "step": step, "time": time.time() - 100 + step, "train/loss": 2.0 / step,
        "train/log_reward": -5.0 + step, "train/phi_spread": 1.0, "train/phi_spread_max": 2.0,
        "train/phi_spread_terminal": 0.5, "train/grad_norm": 3.0, "train/lr": 1e-3, "train/length": 4.0,
        "train/reward_temperature": 1.0, "train/buffer_size": 10.0 * step, "train/seconds": 1.0,
        "train/from_replay": 1.0 if turn == 2 else 0.0,
        "train/exploration_temperature": None if turn == 2 else 1.0 + turn,
    }  # fmt: skip
    if turn == 0:
        record |= {"train/log_z": -3.0, "train/log_z_bound": -2.5, "train/log_z_gap": 0.5}
        record["train/entropy"] = 1.5
    return record | {f"seconds/{name}": value for name, value in PHASES.items()} | values


def evaluation(step, kind="eval"):
    metrics = {
        "vote_accuracy": 0.25,
        "single_accuracy": 0.5,
        "log_reward": -4.0,
        "log_likelihood": -6.0,
    }
    metrics |= {
        "phi_spread": 0.7,
        "log_z": -3.0,
        "log_z_bound": -2.0,
        "diversity": 0.4,
        "unique": 0.9,
        "distinct_2": 0.8,
        "self_bleu": 0.3,
    }
    sets = ("3_operands", "4_operands")
    named = {f"{kind}/{name}/{group}": value for name, value in metrics.items() for group in sets}
    return {"step": step, "time": time.time(), **named}


def make_run(folder, *, steps=6, wanted=6, finished=True, overrides=(), **config):
    """A run's folder as a run leaves it."""
    folder.mkdir(parents=True)
    whole = {
        "task": {"_target_": ARITHMETIC},
        "objective": {"_target_": "gfn_runner.objectives.losses.JointBalance"},
        "lm": {"name": "embedded", "lora": {"rank": 4}},
        "trainer": {"max_steps": wanted},
        "callbacks": {
            "evaluation": {"every": 2},
            "report": {"pages": "live", "refresh": 7, "pause": 0},
        },
        "seed": 3,
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(["task=arithmetic", *overrides]))
    git = {"commit": "c0ffee" * 6, "changed": False}
    (folder / "environment.json").write_text(json.dumps({"git": git}))
    (folder / "run.log").write_text("WARNING gfn_runner.lm: something <odd>\n")
    records = [training(step) for step in range(1, steps + 1)]
    records += [evaluation(step) for step in range(2, steps + 1, 2)]
    records += [evaluation(steps, "final")] if finished else []
    write_lines(folder / "metrics.jsonl", records)
    if finished:
        write_lines(folder / "samples.jsonl", [sample("the last")])
        final = {n: v for n, v in records[-1].items() if "/" in n}
        facts = {"run/seed": 3.0, "run/steps": float(wanted), "run/minutes": 2.0}
        facts |= {
            "final/vote_accuracy_low/3_operands": 0.1,
            "final/vote_accuracy_high/3_operands": 0.4,
        }
        (folder / "metrics.json").write_text(json.dumps(final | facts))
    return folder


def sample(text, **others):
    own = {"singles": [text, ""], "log_reward": [-1.5, -9.0], "log_pf": [-0.25, -3.0]}
    return {
        "group": "3_operands",
        "condition": "q",
        "prompt": "1 + 1 = ?",
        "answer": 2,
        **own,
        **others,
    }


def page_of(folder, **how):
    return write_run_page(folder, **how).read_text()


def titles(page):
    return re.findall(r'<section class="panel"><h3>(.*?)</h3>', page)


def curves_of(page, title):
    """The curves' tooltips and paths of one chart."""
    chart = re.search(rf"<h3>{re.escape(title)}</h3>(<svg.*?</svg>)", page).group(1)
    return {
        title: d
        for d, title in re.findall(
            r'<path class="curve[^"]*" d="([^"]*)"[^>]*><title>(.*?)</title>', chart
        )
    }


# -- one run ----------------------------------------------------------------------------------------


ALL_TITLES = [
    "vote accuracy (%)", "single accuracy (%)", "mean log R in training (nats)",
    "mean log R, evaluated (nats)", "log-likelihood under the base model (nats)",
    "φ spread in training, whole strings (nats)", "φ spread in training, all states (nats)",
    "φ spread, evaluated (nats)", "log Z, on-policy batches (nats)",
    "gap of log Z: bound less mean φ, on-policy (nats)", "log Z, evaluated (nats)",
    "diversity: 1 − mean pairwise cosine", "different bigrams (share of all)",
    "self-BLEU: low is diverse (0 to 1)", "different samples of a condition (share)",
    "loss (nats², where φ is balanced)", "norm of the gradient", "learning rate", "temperatures",
    "entropy: −log q, on-policy (nats)", "length of strings (tokens)", "replay buffer (strings)",
    "batches from replay (share)", "seconds of an optimizer step, by phase",
]  # fmt: skip


def test_a_page_has_every_chart_that_there_is_data_for(tmp_path):
    page = page_of(make_run(tmp_path / "r"))
    assert titles(page) == ALL_TITLES
    assert all(curves_of(page, title) for title in ALL_TITLES)
    missing = re.search(r"<summary>4 charts without data</summary><ul>(.*?)</ul>", page).group(1)
    assert "age of the replay buffer: the run has logged none." in missing


def test_what_is_logged_anew_has_its_chart(tmp_path):
    folder = make_run(tmp_path / "r")
    with (folder / "metrics.jsonl").open("a") as file:
        new = {"train/buffer_age": 12.0, "train/tokens_per_second": 900.0, "train/kl_penalty": 0.5}
        file.write(json.dumps(training(7, **new)) + "\n")
    page = page_of(folder)
    assert curves_of(page, "age of the replay buffer (optimizer steps)").keys() == {": 12 at 7"}
    assert curves_of(page, "tokens per second").keys() == {": 900 at 7"}
    assert titles(page)[-1] == "kl penalty"


def test_curves_say_what_was_logged(tmp_path):
    page = page_of(make_run(tmp_path / "r"))
    assert curves_of(page, "vote accuracy (%)").keys() == {
        "3 operands: 25 at 6", "3 operands, all conditions: 25 at 6",
        "4 operands: 25 at 6", "4 operands, all conditions: 25 at 6",
    }  # fmt: skip
    by_behaviour = curves_of(page, "mean log R in training (nats)")
    assert by_behaviour.keys() == {"on-policy: 1 at 6", "tempered: −1 at 4", "replay: 0 at 5"}
    assert all(d.count("M") == 2 for d in by_behaviour.values())  # each two of the six steps
    speed = curves_of(page, "seconds of an optimizer step, by phase")
    assert [title.partition(":")[0] for title in speed] == list(PHASES)
    assert "other: 1 at 6" in speed  # the top of all areas


CONTINUATION = "gfn_runner.tasks.continuation.SentenceContinuation"
POSTERIOR = "gfn_runner.tasks.user_posterior.UserPosterior"


@pytest.mark.parametrize("task", [ARITHMETIC, CONTINUATION, POSTERIOR])
def test_what_a_task_puts_first_is_drawn_once_and_with_its_unit(tmp_path, task):
    drawn = titles(page_of(make_run(tmp_path / "r", task={"_target_": task})))
    assert sorted(drawn) == sorted(set(drawn)) and set(drawn) <= set(ALL_TITLES)
    first = {
        CONTINUATION: ["log-likelihood under the base model (nats)", ALL_TITLES[11]],
        POSTERIOR: [ALL_TITLES[3], "φ spread, evaluated (nats)", "log Z, evaluated (nats)"],
        ARITHMETIC: ["vote accuracy (%)", "single accuracy (%)"],
    }  # fmt: skip
    assert drawn[: len(first[task])] == first[task]


def test_every_task_has_words_for_its_headline():
    for name in (
        "arithmetic", "subjectivity", "user_posterior", "constrained", "random_number", "continuation",
        "infilling", "contrastive", "translation",
    ):  # fmt: skip
        module = importlib.import_module(f"gfn_runner.tasks.{name}")
        tasks = [own for own in vars(module).values() if getattr(own, "name", "") == name]
        for metric in tasks[0].headline:
            assert is_share(metric) or name_of(metric) != Name(spoken(metric)), metric
    assert column_title("kl/all_numbers") == "KL(valid samples ‖ target), all numbers (nats)"
    assert column_title("found_share/x") == "found share, x (%)"
    assert name_of("train/new_thing").titled == "new thing"


def test_the_large_dots_of_em_are_the_e_steps(tmp_path):
    """Evaluations on the way are of the policy; behind the M-step another model gives R."""
    folder = make_run(tmp_path / "r")
    with (folder / "metrics.jsonl").open("a") as file:
        last = {
            "step": 6,
            "e_step/log_reward/3_operands": -2.5,
            "final/log_reward/3_operands": -9.0,
        }
        file.write(json.dumps(last) + "\n")
    curves = curves_of(page_of(folder), "mean log R, evaluated (nats)")
    assert "3 operands, all conditions: −2.5 at 6" in curves and not any("−9" in c for c in curves)


def test_pages_of_other_methods_speak_of_their_own_loss_and_strings(tmp_path):
    sft = page_of(
        make_run(tmp_path / "s", baseline={"_target_": "gfn_runner.baselines.methods.SFT"})
    )
    assert "loss: cross-entropy (nats a token)" in titles(sft) and "Hot and replayed" not in sft
    assert "known strings</li>" in sft
    ppo = page_of(
        make_run(tmp_path / "p", baseline={"_target_": "gfn_runner.baselines.methods.PPO"})
    )
    assert "loss: clipped surrogate and value loss" in titles(ppo) and "fresh rollout</li>" in ppo
    assert "batches from replay: PPO has no buffer." in ppo
    own = page_of(make_run(tmp_path / "g"))
    assert "Hot and replayed strings" in own and "nearly always writes the same string" in own


def test_a_buffer_that_never_held_a_string_has_no_chart(tmp_path):
    folder = make_run(tmp_path / "r", steps=1, finished=False)
    none = {
        "train/buffer_size": 0.0,
        "train/from_replay": 0.0,
        "train/exploration_temperature": 1.0,
    }
    write_lines(folder / "metrics.jsonl", [training(3, **none), training(6, **none)])
    page = page_of(folder)
    assert not any("replay" in title for title in titles(page))
    assert "replay buffer: the buffer has held no string." in page


def test_phases_keep_their_colours_where_one_is_missing(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    colors = lambda: dict(re.findall(r'background:(#\w+)"></i>(\w+)</li>', page_of(folder)))  # noqa: E731
    before = {phase: color for color, phase in colors().items() if phase in PHASES}
    records = [{n: v for n, v in training(s).items() if n != "seconds/sample"} for s in range(1, 4)]
    write_lines(folder / "metrics.jsonl", records)
    after = {phase: color for color, phase in colors().items() if phase in PHASES}
    assert after == {phase: color for phase, color in before.items() if phase != "sample"}


def test_a_page_says_how_it_was_run_and_what_came_out(tmp_path):
    folder = make_run(tmp_path / "r", overrides=["seed=3", "task.terminator=' .'"])
    page = page_of(folder)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["state"] == '<b class="badge good">ok</b>'
    assert facts["optimizer step"] == "6 of 6" and facts["time"] == "2 min"
    assert facts["method"] == "GFlowNet, JointBalance" and facts["commit"] == "c0ffeec0ff"
    assert "python -m gfn_runner task=arithmetic seed=3 &#x27;task.terminator=" in page
    assert "max_steps: 6" in page and "something &lt;odd&gt;" in page
    assert "<td>this run</td><td>25.0<br>[10, 40]</td><td>25.0</td>" in page
    assert "<td>1 + 1 = ?</td><td>2</td><td>the last</td><td>−1.50</td><td>−0.25</td>" in page
    assert "<td></td><td></td><td>(empty)</td><td>−9.00</td>" in page


def test_nothing_comes_from_elsewhere(tmp_path):
    folder = make_run(tmp_path / "r")
    write_lines(folder / "samples.jsonl", [sample('<script src="https://x.y/z.js"></script>')])
    page = page_of(folder)
    named = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: named.extend(
        (tag, name, value)
        for name, value in attributes
        if name in ("src", "href", "srcset", "data")
    )
    parser.feed(page)
    assert named == [] and not re.search(r"@import|url\(", page)
    assert "&lt;script src=" in page  # as text, in the table of samples


def test_an_unfinished_runs_page_is_loaded_again_and_a_finished_ones_is_not(tmp_path):
    page = page_of(make_run(tmp_path / "a", steps=4, finished=False))
    assert '<meta http-equiv="refresh" content="7">' in page and "badge busy" in page
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["optimizer step"] == "4 of 6"
    assert "http-equiv" not in page_of(make_run(tmp_path / "b"))
    told = page_of(tmp_path / "a", told="interrupted")
    assert "http-equiv" not in told and '<b class="badge odd">interrupted</b>' in told


def test_time_left_is_that_of_the_newest_part(tmp_path):
    folder = make_run(tmp_path / "r", steps=4, wanted=14, finished=False)
    now = time.time()
    records = [training(step, time=now + 5 * step) for step in range(1, 5)]
    # It was begun a day before, and has been resumed.
    records[0]["time"] -= 86400
    write_lines(folder / "metrics.jsonl", records)
    state = state_of(read_run(folder), History(folder / "metrics.jsonl").read())
    assert state.left == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize(("a_step", "patience"), [(1.0, 900.0), (400.0, 2400.0)])
def test_a_page_knows_when_the_next_one_is_due(tmp_path, a_step, patience):
    """A run killed outright cannot say so: past that time its page calls it silent by itself."""
    folder = make_run(tmp_path / "r", steps=4, wanted=14, finished=False)
    records = [training(step, time=time.time() + a_step * step) for step in range(1, 5)]
    write_lines(folder / "metrics.jsonl", records)
    before = time.time()
    due = re.search(r'data-due="(\d+)"', page_of(folder))
    assert before + patience - 1 <= int(due[1]) <= time.time() + patience + 1
    # At its last step it evaluates, for as long as that takes.
    assert "data-due" not in page_of(make_run(tmp_path / "last", steps=6, finished=False))
    assert "data-due" not in page_of(make_run(tmp_path / "whole"))


@pytest.mark.parametrize("refresh", [None, 9])
def test_the_refresh_tag(refresh):
    page = html_page([Heading("t", 1)], Live(refresh, 0.0))
    assert ('<meta http-equiv="refresh" content="9">' in page) == (refresh == 9)
    assert 'data-written="0"' in page
    assert "<script>" not in html_page([Heading("t", 1)])


def test_a_failed_runs_page_says_why_and_shows_the_logs_end(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    (folder / "run.log").write_text("WARNING before\n" + FAILED)
    page = page_of(folder)
    assert "<p>failed: ValueError: the loss is not finite</p>" in page
    assert "badge bad" in page and "http-equiv" not in page
    assert page.index("WARNING before") < page.index("Course of training")


def test_a_run_that_went_on_after_its_failure_is_not_failed(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    (folder / "run.log").write_text(FAILED)
    state = lambda: state_of(read_run(folder), History(folder / "metrics.jsonl").read())  # noqa: E731
    assert state().word == "failed"
    later = time.time() + 60
    os.utime(folder / "metrics.jsonl", (later, later))
    assert state().word == "running"
    assert failure((FAILED + "WARNING later").splitlines()) == ""


def test_a_run_without_a_sign_of_life_is_silent(tmp_path):
    folder = make_run(tmp_path / "r", steps=3, finished=False)
    before = time.time() - 5000
    for path in folder.iterdir():
        os.utime(path, (before, before))
    history = History(folder / "metrics.jsonl").read()
    state = state_of(read_run(folder), history)
    assert state.word == "silent" and state.why.startswith("no sign of life for 83 min")
    assert "http-equiv" not in page_of(folder)
    # Its own process knows better: it is at a long evaluation.
    assert state_of(read_run(folder), history, "running").word == "running"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (FAILED, "ValueError: the loss is not finite"),
        ("ERROR gfn_runner.app: the run has failed: lm.name: given\n  allowed: y", "lm.name: given"),
        ("ERROR other: out of luck", "out of luck"),
        ("WARNING a: b", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_reason_in_a_log(log, reason):
    assert failure(log.splitlines()) == reason


def test_a_baseline_that_trains_nothing_has_a_table_and_says_why_no_curves(tmp_path):
    folder = make_run(tmp_path / "r", baseline={"_target_": PROMPTING}, steps=0)
    (folder / "metrics.jsonl").unlink()
    metrics = {"base_0_shot/vote_accuracy/3_operands": 0.75, "run/minutes": 1.0, "run/steps": 0.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = page_of(folder)
    assert titles(page) == [] and "No curves: the run trains nothing." in page
    assert "<td>75.0</td>" in page and "<h1>arithmetic, Prompting: " in page
    assert "http-equiv" not in page


def test_samples_are_the_newest_ones(tmp_path):
    folder = make_run(tmp_path / "r", steps=4, finished=False)
    assert "None yet: the first evaluation writes some." in page_of(folder)
    write_lines(folder / "samples_newest.jsonl", [sample("on the way", step=4)])
    page = page_of(folder)
    assert "<td>on the way</td>" in page and "at optimizer step 4 (samples_newest.jsonl)" in page
    write_lines(folder / "samples.jsonl", [sample("at the end")])
    later = time.time() + 60
    os.utime(folder / "samples.jsonl", (later, later))
    assert "<td>at the end</td>" in page_of(folder)


def test_a_run_of_one_step_has_charts_of_points(tmp_path):
    page = page_of(make_run(tmp_path / "r", steps=1, finished=False))
    assert "NaN" not in page and "seconds of an optimizer step, by phase" in titles(page)
    page = page_of(make_run(tmp_path / "none", steps=0, finished=False))
    assert titles(page) == [] and "loss: no optimizer step yet." in page
    assert "vote accuracy: not evaluated yet." in page


# -- charts -----------------------------------------------------------------------------------------


def test_ticks_are_round_and_within():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-0.35, 0.35) == pytest.approx([-0.2, 0, 0.2])
    assert ticks(1, 3, whole=True) == [1, 2, 3]
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(2, 30) == [2, 5, 10, 20]
    assert log_ticks(2.1, 2.9) == pytest.approx([2.2, 2.4, 2.6, 2.8])


@pytest.mark.parametrize(
    ("value", "step", "said"),
    [
        (0.0, 1, "0"), (-21.2, 0.2, "−21.2"), (4.6152, 0.0002, "4.6152"), (1e-5, None, "10⁻⁵"),
        (12345.0, 1, "12345"), (1.5e6, None, "1.5·10⁶"), (-1e-6, None, "−10⁻⁶"),
        (105000.0, 5000, "1.05·10⁵"), (2e5, 1e5, "2·10⁵"), (0.30000000000000004, 0.1, "0.3"),
    ],
)  # fmt: skip
def test_numbers_of_an_axis(value, step, said):
    assert number(value, step) == said


def test_long_curves_are_thinned_to_means_and_dots_to_single_ones():
    steps = list(range(10 * MOST_POINTS))
    line = thinned(Curve("", steps, [float(s % 10) for s in steps]))
    assert len(line.x) == MOST_POINTS and set(line.y) == {4.5} and line.x[0] == 4.5
    dots = thinned(Curve("", steps, steps, "dots"))
    assert len(dots.x) == MOST_POINTS and dots.y[1] == 10
    area = thinned(Curve("", steps, steps, "area", base=[1.0] * len(steps)))
    assert len(area.base) == len(area.x) == MOST_POINTS


@pytest.mark.parametrize(
    "values", [[0.0], [-7.5] * 3, [1e-9, 2e-9], [1e12, -1e12], [3.0, 3.0 + 1e-12]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_numbers_fit_into_a_chart(values, log):
    made = svg([Curve("c", list(range(len(values))), values)], title="t", log=log)
    numbers = [
        float(n)
        for n in re.findall(r"-?\d+\.\d", re.search(r'curve \w+" d="([^"]*)"', made).group(1))
    ]
    assert all(math.isfinite(n) for n in numbers)
    assert all(0 <= n <= 240 for n in numbers[1::2]), made


# -- history ----------------------------------------------------------------------------------------


def test_history_reads_what_was_added_and_waits_for_whole_lines(tmp_path):
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


def test_behaviours_are_three_populations(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [training(step) for step in range(1, 7)]
    records[0]["train/from_replay"] = 0.5  # several batches a step
    write_lines(path, records)
    history = History(path).read()
    assert history.get("train/log_reward", "on-policy")[0] == [3, 6]
    assert history.get("train/log_reward", "tempered")[0] == [4]
    assert history.get("train/log_reward", "replay")[0] == [2, 5]


# -- writing ----------------------------------------------------------------------------------------


def test_nobody_reads_half_a_page(tmp_path):
    """A reader beside several writers always finds one of the whole texts."""
    path = tmp_path / "report.html"
    texts = [letter * 200_000 for letter in "abc"]
    write_page(path, texts[0])
    ended, found = threading.Event(), set()

    def read():
        while not ended.is_set():
            found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for text in texts:
            write_page(path, text)
    ended.set()
    reader.join()
    assert found <= set(texts)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, *_, **__):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(web.Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_page(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_cells_in_both_kinds_of_page():
    table = Table(
        ("n", "v"), [(Link("a_b", "x y/report.html"), Badge("ok", "good"))], False, ["7"], ["#123"]
    )
    page = html_page([Heading("t", 1), table])
    assert (
        '<tr data-owner="7"><td><i style="background:#123"></i><a href="x%20y/report.html">a_b</a>'
        in page
    )
    assert '<b class="badge good">ok</b>' in page
    assert (
        markdown([Text("t"), table])
        == "t\n\n| n | v |\n|---|---|\n| [a_b](x y/report.html) | ok |\n"
    )


# -- live -------------------------------------------------------------------------------------------


def samples(n=6, singles=20):
    condition = Condition(key="q", group="3_operands", prompt="1 + 1 = ?", answer=2, terms=())
    own = ConditionSamples(condition, [], ["new"] * singles, [-1.0] * singles, [-2.0] * singles)
    return [own] * n


def test_every_evaluation_leaves_its_samples_and_a_page(tmp_path):
    folder = make_run(tmp_path / "r", steps=2, finished=False)
    pages = LivePages(folder, ReportSettings())
    pages.begun()
    assert "None yet" in (folder / "report.html").read_text()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(training(3)) + "\n")
    pages.evaluated(3, samples())
    page = (folder / "report.html").read_text()
    assert "<dd>3 of 6</dd>" in page and "<td>new</td>" in page and "at optimizer step 3" in page
    kept = [json.loads(line) for line in (folder / "samples_newest.jsonl").read_text().splitlines()]
    assert len(kept) == 4 and len(kept[0]["singles"]) == len(kept[0]["log_pf"]) == 8
    pages.interrupted()
    assert "interrupted</b>" in (folder / "report.html").read_text()


def test_a_page_that_fails_costs_one_line_in_the_log_and_no_run(tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "r", steps=2, finished=False)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "write_lines", full)
    monkeypatch.setattr(run_page, "write_page", full)
    pages = LivePages(folder, ReportSettings())
    for step in range(3):
        pages.evaluated(step, samples())
    assert [record.getMessage() for record in caplog.records] == [
        "no page: [Errno 28] No space left on device; the run goes on"
    ]


def test_a_fault_of_the_page_is_none_of_the_runs(tmp_path, monkeypatch, caplog):
    folder = make_run(tmp_path / "r", steps=2, finished=False)
    monkeypatch.setattr(run_page, "html_page", lambda *_: 1 / 0)
    LivePages(folder, ReportSettings()).begun()
    assert "ZeroDivisionError" in caplog.text


def test_pages_at_the_end_are_written_unless_they_are_off(tmp_path):
    for when in ("off", "end", "live"):
        folder = make_run(tmp_path / when, callbacks={"report": {"pages": when}})
        live.end_pages(folder)
        assert (folder / "report.html").is_file() == (when != "off")


# -- sweeps -----------------------------------------------------------------------------------------


def make_sweep(
    folder, *lines, sweeper="hydra._internal.core_plugins.basic_sweeper.BasicSweeper", params=None
):
    folder.mkdir(parents=True)
    hydra = {"overrides": {"task": list(lines)}, "sweeper": {"_target_": sweeper, "params": params}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    return folder


def test_jobs_of_a_question_are_known_before_they_begin(tmp_path):
    params = {"optim.lr": "0.1,0.2", "objective": "joint,tb"}
    sweep = Sweep(make_sweep(tmp_path / "s", "objective=db", "seed=0,1", params=params)).read()
    found = [(job.said["optim.lr"], job.said["objective"], job.said["seed"]) for job in sweep.jobs]
    # What is said on the command line wins over the question.
    assert found == [
        ("0.1", "db", "0"),
        ("0.1", "db", "1"),
        ("0.2", "db", "0"),
        ("0.2", "db", "1"),
    ]


def test_the_sweeps_record_knows_the_folders_of_its_jobs(tmp_path):
    sweep = make_sweep(tmp_path / "s", "seed=3,4", "task=arithmetic")
    make_run(sweep / "seed3")
    jobs = [{"folder": f"seed{n}", "overrides": [f"seed={n}", "task=arithmetic"]} for n in (3, 4)]
    (sweep / "sweep.json").write_text(json.dumps({"overrides": [], "jobs": jobs}))
    found = [(job.name, job.said["seed"], job.state.word) for job in Sweep(sweep).read().jobs]
    assert found == [("seed3", "3", "ok"), ("seed4", "4", "not begun")]


def make_search(folder, *states, searches=True):
    """A search's folder: Hydra's own file is not there, and its record knows the trials so far."""
    folder.mkdir(parents=True)
    jobs = [
        {"folder": str(n), "overrides": [f"optim.lr={n + 1 / 3}"], "state": state, "value": value}
        for n, (state, value) in enumerate(states)
    ]
    lines = ["hydra/sweeper=search", "hydra.sweeper.direction=minimize", "optim.lr=interval(0,9)"]
    record = {"overrides": lines, "searches": searches, "jobs": jobs}
    (folder / "sweep.json").write_text(json.dumps(record))
    return folder


def test_a_search_is_a_sweep_whose_next_jobs_are_not_known(tmp_path):
    folder = make_search(tmp_path / "s", ("ok", 0.5), ("ok", 0.25), ("failed", None))
    for n in range(3):
        make_run(folder / str(n), task={"_target_": "gfn_runner.tasks.random_number.RandomNumbers"})
    LivePages(folder / "2", ReportSettings(pause=0)).begun()
    page = (folder / "report.html").read_text()
    assert "Best of the search so far: run 1, exact_kl 0.25." in page
    assert [row[2] for row in rows_of(page)[1:]] == ["0.3333", "1.333", "2.333"]
    assert ">optim.lr=0.3333<" in page and "0.33333" not in page
    assert "hydra/sweeper=search" in page and "http-equiv" in page, "others may follow"
    assert "all runs of it" in (folder / "2" / "report.html").read_text()
    record = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**record, "searches": False}))
    page = write_sweep_page(Sweep(folder), whole=False).read_text()
    assert "Best of the search: run 1" in page and "http-equiv" not in page


def rows_of(page):
    table = page[page.index("<h2>Runs</h2>") :].partition("</table>")[0]
    strip = lambda cell: re.sub(r"<[^>]*>", "", cell)  # noqa: E731
    return [
        [strip(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)]
        for row in re.findall(r"<tr.*?</tr>", table)
    ]


def test_a_sweeps_page_lists_every_job_with_its_state(tmp_path):
    sweep = make_sweep(tmp_path / "s", "optim.lr=1e-3,1e-4,1", "seed=0,1", "task=arithmetic")
    make_run(sweep / "0")
    make_run(sweep / "1", steps=4, finished=False)
    failed = make_run(sweep / "2", steps=3, finished=False)
    (failed / "run.log").write_text(FAILED)
    (sweep / "3").mkdir()
    (sweep / "3/run.log").write_text(
        "ERROR gfn_runner.app: the run has failed: task.data: nothing there\n"
    )
    (sweep / ".submitit").mkdir()
    page = write_sweep_page(Sweep(sweep)).read_text()
    header, *rows = rows_of(page)
    assert header == [
        "run", "state", "optim.lr", "seed", "step", "minutes", "vote accuracy (%)",
        "single accuracy (%)", "why",
    ]  # fmt: skip
    assert [row[:5] for row in rows] == [
        ["0", "ok", "0.001", "0", "6/6"], ["1", "running", "0.001", "1", "4/6"],
        ["2", "failed", "0.0001", "0", "3/6"], ["3", "failed", "0.0001", "1", ""],
        ["4", "not begun", "1", "0", ""], ["5", "not begun", "1", "1", ""],
    ]  # fmt: skip
    assert rows[0][5:8] == ["2.0", "25.0", "50.0"] and rows[1][6:8] == ["25.0*", "50.0*"]
    assert [row[-1] for row in rows[2:4]] == [
        "ValueError: the loss is not finite",
        "task.data: nothing there",
    ]
    assert re.findall(r'<a href="([^"]*)"', page) == [
        "0/report.html",
        "1/report.html",
        "2/report.html",
    ]
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "6 runs: 1 ok, 1 running, 2 failed, 2 not begun." in page
    assert "gfn_runner -m optim.lr=1e-3,1e-4,1 seed=0,1 task=arithmetic" in page


def test_a_sweeps_curves_are_of_all_runs_and_coloured_by_what_was_varied(tmp_path):
    sweep = make_sweep(tmp_path / "s", "optim.lr=1e-3,1e-4", "seed=0,1")
    for n in range(3):
        make_run(sweep / str(n), steps=4, finished=False)
    page = write_sweep_page(Sweep(sweep)).read_text()
    assert curves_of(page, "vote accuracy (%)").keys() == {
        f"run {n}: optim.lr={lr}, seed={seed}: 25 at 4"
        for n, lr, seed in ((0, 0.001, 0), (1, 0.001, 1), (2, 0.0001, 0))
    }
    colors, legend = colors_of(Sweep(sweep).read())
    assert colors["0"] == colors["1"] != colors["2"] == colors["3"]
    assert [label for _, label in legend] == ["optim.lr=0.001", "optim.lr=0.0001"]
    assert "None has finished yet." in page
    owners = re.findall(r'data-owner="(\d)"', page)
    assert {owner: owners.count(owner) > 5 for owner in "0123"} == dict.fromkeys("012", True) | {
        "3": False
    }


def test_a_sweeps_curves_of_training_are_of_what_the_policy_writes(tmp_path):
    sweep = make_sweep(tmp_path / "s", "seed=0,1")
    made = [make_run(sweep / str(n), steps=8, finished=False) for n in range(2)]
    title = "mean log R in training (nats)"
    # Steps 3 and 6 alone are on-policy.
    page = write_sweep_page(Sweep(sweep)).read_text()
    assert curves_of(page, title).keys() == {"run 0: seed=0: 1 at 6", "run 1: seed=1: 1 at 6"}
    assert "<p>On-policy batches.</p>" in page and "of runs without any" not in page
    write_lines(made[1] / "metrics.jsonl", [training(2), training(5)])
    page = write_sweep_page(Sweep(sweep)).read_text()
    assert curves_of(page, title).keys() == {"run 0: seed=0: 1 at 6", "run 1: seed=1: 0 at 5"}
    assert "<p>On-policy batches; of runs without any, all batches.</p>" in page


def test_colours_where_little_or_much_is_varied(tmp_path):
    seeds = make_sweep(tmp_path / "seeds", "seed=0,1,2")
    colors, legend = colors_of(Sweep(seeds).read())
    assert len(set(colors.values())) == 3 and legend[1][1] == "run 1: seed=1"
    many = make_sweep(
        tmp_path / "many", f"optim.lr={','.join(map(str, range(1, 13)))}", "objective=a,b"
    )
    colors, legend = colors_of(Sweep(many).read())
    assert [label for _, label in legend] == ["objective=a", "objective=b"] and len(colors) == 24
    hues = make_sweep(tmp_path / "hues", f"optim.lr={','.join(map(str, range(1, 13)))}")
    colors, legend = colors_of(Sweep(hues).read())
    assert len(set(colors.values())) == 12 and [label for _, label in legend][1] == "run 11"


def test_fifty_runs_are_one_page_and_read_once(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "s", f"optim.lr={','.join(map(str, range(1, 26)))}", "seed=0,1")
    for n in range(50):
        make_run(sweep / str(n), seed=n % 2, optim={"lr": n // 2})
    own = Sweep(sweep)
    page = write_sweep_page(own).read_text()
    assert len(rows_of(page)) == 51 and [row[0] for row in rows_of(page)][1:] == [
        str(n) for n in range(50)
    ]
    assert len(curves_of(page, "loss (nats², where φ is balanced)")) == 50
    assert "25 methods" in page or "it has many methods" in page
    assert "http-equiv" not in page and len(page) < 2_000_000
    read = []
    whole = History._take
    monkeypatch.setattr(
        History, "_take", lambda self, record: read.append(1) or whole(self, record)
    )
    write_sweep_page(own)
    assert not read


def test_finished_runs_of_a_sweep_are_compared(tmp_path):
    sweep = make_sweep(tmp_path / "s", "seed=0,1")
    for n in range(2):
        make_run(sweep / str(n), seed=n)
    page = write_sweep_page(Sweep(sweep)).read_text()
    compared = page[page.index("Finished runs side by side") :]
    assert "<td>GFlowNet</td><td>2</td>" in compared
    assert "data:image/png;base64," in compared and "http-equiv" not in page
    brief = write_sweep_page(Sweep(sweep), whole=False).read_text()
    assert "data:image/png" not in brief and "since the sweep goes on" in brief


def test_another_sweepers_jobs_are_those_with_a_folder(tmp_path):
    sweep = make_sweep(tmp_path / "s", "optim.lr=interval(0,1)", sweeper="optuna.Sweeper")
    for n, lr in ((0, 0.1), (10, 0.2), (9, 0.3)):
        make_run(sweep / str(n), overrides=[f"optim.lr={lr}"])
    _, *rows = rows_of(write_sweep_page(Sweep(sweep), whole=False).read_text())
    assert [row[:3] for row in rows] == [
        ["0", "ok", "0.1"],
        ["9", "ok", "0.3"],
        ["10", "ok", "0.2"],
    ]


def test_a_job_writes_the_sweeps_page_too_but_not_all_the_time(tmp_path):
    sweep = make_sweep(tmp_path / "s", "seed=0,1")
    folder = make_run(sweep / "0", steps=2, finished=False)
    pages = LivePages(folder, ReportSettings(pause=1000))
    page = sweep / "report.html"
    pages.begun()
    assert [row[1] for row in rows_of(page.read_text())] == ["state", "running", "not begun"]
    page.write_text("another job's")
    # Neither so soon after another job, nor so soon after its own.
    LivePages(folder, ReportSettings(pause=1000)).evaluated(2, [])
    pages.options = ReportSettings(pause=0)
    pages._sweep_due = time.time() + 5
    pages.evaluated(2, [])
    assert page.read_text() == "another job's"
    LivePages(folder, ReportSettings(pause=0)).evaluated(2, [])
    assert len(rows_of(page.read_text())) == 3
    pages.interrupted()
    assert [row[1] for row in rows_of(page.read_text())] == ["state", "interrupted", "not begun"]
    assert "all runs of it" in (folder / "report.html").read_text()


def test_a_job_without_a_config_only_has_its_row(tmp_path, caplog):
    sweep = make_sweep(tmp_path / "s", "seed=0,1")
    (sweep / "0").mkdir()
    (sweep / "0/run.log").write_text("ERROR gfn_runner.app: the run has failed: no\n")
    live.end_pages(sweep / "0")
    assert [row[1] for row in rows_of((sweep / "report.html").read_text())][1:] == [
        "failed",
        "not begun",
    ]
    assert not (sweep / "0/report.html").exists() and not caplog.records


# -- the command ------------------------------------------------------------------------------------


def test_pages_are_made_afterwards_for_all_runs_and_their_sweeps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep = make_sweep(tmp_path / "out/s", "seed=0,1")
    make_run(sweep / "0")
    make_run(tmp_path / "out/x/alone", steps=2, finished=False)
    main(["--pages", "out"])
    names = ["out/s/0/report.html", "out/s/report.html", "out/x/alone/report.html"]
    assert sorted(capsys.readouterr().out.split()) == names
    assert all((tmp_path / name).is_file() for name in names)
    # Runs right below a folder that was named are a sweep too.
    main(["--pages", "out/x"])
    assert (tmp_path / "out/x/report.html").is_file() and not (
        tmp_path / "out/report.html"
    ).exists()


def test_mistakes_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "good")
    make_run(tmp_path / "bad")
    (tmp_path / "bad/metrics.json").write_text("{")
    for arguments, said in (
        (["--pages", "none"], "none: there is no such folder"),
        (["--pages", "good", "--out", "x"], "--out: given with --pages"),
        (["--pages", "good", "bad"], "bad/metrics.json: cannot be read"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2 and said in capsys.readouterr().err
    # The others have theirs all the same.
    assert (tmp_path / "good/report.html").is_file() and not (tmp_path / "bad/report.html").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "r")

    def refused(*_):
        raise PermissionError(13, "Permission denied", "r/report.html")

    monkeypatch.setattr(run_page, "write_page", refused)
    from gfn_runner.report.page_files import write_pages

    with pytest.raises(UserError, match="its page cannot be written"):
        write_pages([str(folder)])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(5, "5 s"), (600, "10 min"), (7260, "2 h 01 min"), (3 * 86400, "3.0 days")],
)
def test_lengths_of_time(seconds, said):
    assert duration(seconds) == said


def test_what_is_opened_stays_open_and_a_sweeps_first_column_is_narrow():
    folded = Folded("4 charts without data", [Text("x")])
    table = Table(("run", "v"), [("0", "1")], False, ["0"])
    page = html_page([Heading("t", 1), folded, table], Live(9, 0.0))
    assert "sessionStorage" in page and "sessionStorage" not in html_page([folded])
    assert (
        '<table class="runs">' in page
        and ".runs td:first-child { min-width: 0; white-space: nowrap }" in page
    )
    # Pointing at a run makes its lines thicker; dots keep their own width.
    assert ".on { stroke-opacity: 1 }" in page and ".pointed .chart .line.on { stroke-width" in page
    assert "pre { white-space: pre-wrap" in page


def test_a_sweeps_comparison_has_its_headings_in_order(tmp_path):
    sweep = make_sweep(tmp_path / "s", "seed=0,1")
    for n in range(2):
        make_run(sweep / str(n), seed=n)
    page = write_sweep_page(Sweep(sweep)).read_text()
    found = re.findall(r"<h(\d)>(.*?)</h\d>", page[page.index("Finished runs") - 4 :])
    assert found[:3] == [
        ("2", "Finished runs side by side"), ("3", "arithmetic"), ("4", "How each was run"),
    ]  # fmt: skip


def test_memory_of_host_and_gpu_stands_on_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics |= {"run/peak_memory_gib": 1.5, "run/peak_gpu_memory_gib": 11.25}
    (run / "metrics.json").write_text(json.dumps(metrics))
    assert "1.50 GiB of host memory and 11.25 GiB of GPU memory" in page_of(run)
