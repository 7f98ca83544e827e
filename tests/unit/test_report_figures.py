"""Figures that set methods beside each other, out of made-up folders."""

from __future__ import annotations

import math

import pytest

from gfn_runner.report.method_figures import compute, draw
from gfn_runner.report.method_figures import likelihood_against_diversity as likelihood
from gfn_runner.report.posterior_figures import calibration
from gfn_runner.runtime.json_lines import write_lines

from ..report_folders import CONTINUATION, LIKELY, accuracy, leave_run, logged, only_section, record

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


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


def test_ways_of_choosing_under_different_settings_are_lines_of_their_own(tmp_path):
    for model, shift in (("embedded", 0.0), ("gpt2", 1.0)):
        metrics = {
            f"best_of_{n}/{name}": value + shift + n
            for n in (1, 4)
            for name, value in LIKELY.items()
        }
        leave_run(tmp_path / model, metrics, task=CONTINUATION, lm={"name": model})
    (axes,) = likelihood(only_section(".")).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines["best of (lm.name=embedded), out of 1 to 4 strings"] == [-8.0, -5.0]
    assert lines["best of (lm.name=gpt2), out of 1 to 4 strings"] == [-7.0, -4.0]


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


def test_the_headline_stands_over_the_minutes_of_training(tmp_path):
    for seed, shift in enumerate((0.0, 0.2)):
        folder = leave_run(tmp_path / str(seed), {"final/vote_accuracy/x": 0.6 + shift}, seed=seed)
        logged(folder, {5: 0.2 + shift, 10: 0.6 + shift}, **{"train/seconds": 60.0})
    (axes,) = compute(only_section(".")).axes
    assert curve(axes, 0) == ([5.0, 10.0], pytest.approx([0.3, 0.7]))
    assert axes.get_xlabel() == "minutes of training"


def test_a_figure_without_data_is_left_out_and_says_why(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5))
    written, missing = draw(only_section("a"), tmp_path)
    assert not written and not list(tmp_path.glob("*.png"))
    names = ["likelihood diversity", "histogram", "calibration", "evidence", "compute"]
    assert [text.partition(":")[0] for text in missing] == names
