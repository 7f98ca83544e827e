"""Figures that set methods beside each other, out of made-up folders."""

from __future__ import annotations

import json
import math

import matplotlib.pyplot as plt
import pytest

from gfn_runner.report.method_figures import compute, draw, histograms
from gfn_runner.report.method_figures import likelihood_against_diversity as likelihood
from gfn_runner.report.posterior_figures import calibration, evidence
from gfn_runner.runtime.json_lines import write_lines

from ..report_folders import (
    CONTINUATION,
    LIKELY,
    NUMBERS,
    accuracy,
    leave_run,
    logged,
    only_section,
    record,
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def curve(axes, number):
    line = axes.containers[number].lines[0]
    return list(line.get_xdata()), list(line.get_ydata())


def test_likelihood_has_a_mark_a_method_with_errors_over_seeds(tmp_path):
    for seed, shift in enumerate((-0.1, 0.1)):
        metrics = {f"final/{name}": value + shift for name, value in LIKELY.items()}
        metrics["final/diversity/news"] = 0.5 + shift / 10
        metrics |= {f"base_0_shot/{name}": value for name, value in LIKELY.items()}
        leave_run(tmp_path / str(seed), metrics, seed=seed, task=CONTINUATION)
    (axes,) = likelihood(only_section(".")).axes
    marks = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers]
    assert marks == [pytest.approx((0.5, y)) for y in (-9.0, -7.0, -9.0, -7.0)]
    colors = [c.lines[0].get_color() for c in axes.containers]
    assert colors == ["C0", "C0", "C1", "C1"]
    across, up = axes.containers[0].lines[2]
    assert across.get_segments()[0][:, 0] == pytest.approx((0.49, 0.51))
    assert up.get_segments()[0][:, 1] == pytest.approx((-9.1, -8.9))


def test_strings_chosen_out_of_several_are_one_line_and_take_no_colour(tmp_path):
    metrics = {f"final/{name}": value for name, value in LIKELY.items()}
    for n, shift in ((4, 0.2), (1, 0.0), (16, 0.4)):
        metrics |= {f"resampled_{n}/{name}": value + shift for name, value in LIKELY.items()}
    metrics |= {f"base_0_shot/{name}": value for name, value in LIKELY.items()}
    leave_run(tmp_path / "a", metrics, task=CONTINUATION)
    figure = likelihood(only_section("."))
    (axes,) = figure.axes
    mean, best = [line for line in axes.lines if line.get_color() == "grey"]
    assert list(mean.get_xdata()) == pytest.approx([0.5, 0.7, 0.9])
    assert list(mean.get_ydata()) == pytest.approx([-9.0, -8.8, -8.6])
    assert list(best.get_ydata()) == pytest.approx([-7.0, -6.8, -6.6])
    assert [text.get_text() for text in axes.texts] == ["1", "16"] * 2
    assert [c.lines[0].get_color() for c in axes.containers] == ["C0", "C0", "C1", "C1"]
    (legend,) = figure.legends
    assert "resampled, out of 1 to 16 strings" in [text.get_text() for text in legend.texts]


def test_histograms_have_a_panel_a_method(tmp_path):
    folder = leave_run(
        tmp_path / "a", {"final/kl/numbers": 0.1, "base_0_shot/kl/numbers": 0.2}, task=NUMBERS
    )
    for name, texts in (("samples", [" 3", " 4"]), ("samples_base_0_shot", [" 4", " 9"])):
        drawn = record(texts, [0.0] * 2, [0.0] * 2, target={" 3": 0.5, " 4": 0.5})
        write_lines(folder / f"{name}.jsonl", [drawn])
    ours, base = histograms(only_section("a")).axes
    assert [bar.get_height() for bar in ours.patches] == [0.5, 0.5]
    assert [bar.get_height() for bar in base.patches] == [0.0, 0.5]
    assert base.get_title() == "base model, 0-shot: 2 samples, 50.0 % of them invalid"


def test_an_exact_policy_lies_on_the_line(tmp_path):
    folder = leave_run(tmp_path / "a", accuracy(0.5, 0.1))
    # At T = 0.5, log R/T is twice log R; log q is that less log Z = 3. A repeated string is one dot.
    log_reward = [-1.0, -2.0, -2.0, float("-inf")]
    drawn = record(["a", "b", "b", "c"], log_reward, [2 * r - 3 for r in log_reward])
    write_lines(folder / "samples.jsonl", [drawn])
    write_lines(folder / "samples_base_0_shot.jsonl", [drawn])
    (axes,) = calibration(only_section("a")).axes
    assert list(axes.lines[0].get_xdata()) == pytest.approx([-2.0, -4.0])
    assert list(axes.lines[0].get_ydata()) == pytest.approx([-2.0, -4.0])
    # The line of equal values is at 45°.
    assert axes.get_aspect() == 1 and axes.get_xlim() == axes.get_ylim()
    low, high = axes.get_xlim()
    assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) <= 6


def test_a_policy_that_has_collapsed_is_off_the_line_where_others_know_log_z(tmp_path):
    """It always writes one of four equal strings: its own samples would put it on the line."""
    ppo = {"_target_": "gfn_runner.algorithms.ppo.PPO"}
    folder = leave_run(tmp_path / "p", accuracy(0.5), baseline=ppo)
    write_lines(folder / "samples.jsonl", [record(["a", "a"], [-1.0, -1.0], [0.0, 0.0])])
    (axes,) = calibration(only_section("p")).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([-2.0])  # log R / T, alone
    policy = leave_run(tmp_path / "g", accuracy(0.9))
    log_q = -math.log(4)
    write_lines(policy / "samples.jsonl", [record(["a", "b"], [-1.0, -1.0], [log_q, log_q])])
    exact, collapsed = calibration(only_section(".")).axes
    assert list(exact.lines[0].get_ydata()) == pytest.approx([-2.0, -2.0])
    assert list(collapsed.lines[0].get_ydata()) == pytest.approx([-2.0 + math.log(4)])
    # Another posterior of the same name says nothing of this one.
    leave_run(tmp_path / "o", accuracy(0.5), lm={"name": "gpt2", "lora": {"rank": 4}})
    high = record(["a", "b"], [9.0, 9.0], [log_q, log_q])
    write_lines(tmp_path / "o/samples.jsonl", [high])
    first = calibration(only_section(".")).axes[0]
    assert list(first.lines[0].get_ydata()) == pytest.approx([-2.0, -2.0])


def test_an_exact_log_z_goes_before_every_estimate(tmp_path):
    folder = leave_run(tmp_path / "a", accuracy(0.5))
    listed = record(["a", "b"], [-1.0, -1.0], [-9.0, -9.0], support_log_reward=[-1.0, -1.0])
    write_lines(folder / "samples.jsonl", [listed])
    (axes,) = calibration(only_section("a")).axes
    exact = -2.0 + math.log(2)
    assert list(axes.lines[0].get_ydata()) == pytest.approx([-9 + exact, -9 + exact])


def test_evidence_is_set_against_the_sum_over_all_strings(tmp_path):
    folder = leave_run(tmp_path / "a", accuracy(0.5))
    drawn = record(["a", "b"], [-1.0, -1.0], [-4.0, -5.0], support_log_reward=[-1.0, -1.0])
    write_lines(folder / "samples.jsonl", [drawn])
    figure = evidence(only_section("a"))
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["GFlowNet"]
    assert axes.get_xlim() == axes.get_ylim()
    exact, mean, bound = -2.0 + math.log(2), 2.5, math.log((math.e**2 + math.e**3) / 2)
    found = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[:2]]
    assert found == [pytest.approx((exact, mean)), pytest.approx((exact, bound))]


def test_the_headline_stands_over_the_strings_trained_on(tmp_path):
    for seed, shift in enumerate((0.0, 0.2)):
        folder = leave_run(tmp_path / str(seed), {"final/vote_accuracy/x": 0.6 + shift}, seed=seed)
        logged(folder, {5: 0.2 + shift, 10: 0.6 + shift})
    (axes,) = compute(only_section(".")).axes
    assert curve(axes, 0) == ([40.0, 80.0], pytest.approx([0.3, 0.7]))
    assert axes.get_xlabel() == "strings trained on"


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "some GPU")])
def test_it_stands_over_time_beside_a_trained_baseline(devices, tmp_path):
    ppo = {"_target_": "gfn_runner.algorithms.ppo.PPO"}
    for name, baseline, device in zip("ap", (None, ppo), devices, strict=True):
        metrics = {"final/vote_accuracy/x": 0.6, "train/cpu_seconds": 6.0}
        folder = leave_run(tmp_path / name, metrics, baseline=baseline)
        environment = json.loads((folder / "environment.json").read_text())
        (folder / "environment.json").write_text(json.dumps(environment | {"device": device}))
        # A record every fifth step speaks of all five.
        logged(folder, {5: 0.2, 10: 0.6}, **{"train/cpu_seconds": 6.0, "train/seconds": 60.0})
    (axes,) = compute(only_section(".")).axes
    minutes = [0.5, 1.0] if devices[1] == "cpu" else [5.0, 10.0]
    assert curve(axes, 0) == curve(axes, 1) == (pytest.approx(minutes), [0.2, 0.6])
    assert axes.get_xlabel().startswith("minutes of training")
    assert ("CPU" in axes.get_xlabel()) == (devices[1] == "cpu")


def test_rows_of_several_draws_stand_over_their_number(tmp_path):
    metrics = {
        "final/vote_accuracy/x": 0.9, "final/single_accuracy/x": 0.8,
        "resampled_4/single_accuracy/x": 0.5, "resampled_16/single_accuracy/x": 0.7,
        "best_of_4/single_accuracy/x": 0.4,
    }  # fmt: skip
    evaluation = {"votes": 10}
    leave_run(tmp_path / "a", metrics, evaluation=evaluation)
    (axes,) = compute(only_section("a")).axes
    marks = {
        line.get_label(): (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.lines
        if line.get_label().startswith("GFlowNet")
    }
    assert marks == {"GFlowNet, one sample": (1, 0.8), "GFlowNet, vote": (10, 0.9)}
    names = [container.get_label() for container in axes.containers]
    found = dict(zip(names, (curve(axes, n) for n in range(len(names))), strict=True))
    assert found == {"resampled": ([4, 16], [0.5, 0.7]), "best of": ([4], [0.4])}


def test_a_figure_without_data_is_left_out_and_says_why(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5))
    written, missing = draw(only_section("a"), tmp_path)
    assert not written and not list(tmp_path.glob("*.png"))
    names = ["likelihood diversity", "histogram", "calibration", "evidence", "compute"]
    assert [text.partition(":")[0] for text in missing] == names
