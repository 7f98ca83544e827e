"""Rows, tables of samples and the figures that compare them, out of made-up numbers and files."""

from __future__ import annotations

import dataclasses
import json
import math

import matplotlib.pyplot as plt
import pytest
from rich.console import Console

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, ReferenceRow
from gfn_runner.report import figures
from gfn_runner.report.comparison import likelihood_diversity, number_histogram, share_bars
from gfn_runner.report.figures import draw_all
from gfn_runner.report.samples import write_sample_table, write_samples
from gfn_runner.report.table import result_table, row_labels
from gfn_runner.runtime.json_lines import read_lines
from gfn_runner.tasks.continuation import SentenceContinuation
from gfn_runner.tasks.random_number import RandomNumbers


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


def samples(prompt: str, *singles: str, facts: dict | None = None) -> ConditionSamples:
    condition = Condition(prompt, prompt, (), facts=facts or {})
    n = len(singles)
    return ConditionSamples(condition, (), singles, (-1.23456,) * n, (-2.0,) * n)


# -- rows ------------------------------------------------------------------------------------------


def test_rows_stand_in_their_order_whatever_that_of_the_metrics():
    names = (
        "resampled/a", "base_at_T0.8/a", "base_10_shot/a", "direct_3_shot/a", "run/seed",
        "e_step/a", "base_2_shot/a", "base_0_shot/a/b", "final/a", "base_0_shot/a",
    )  # fmt: skip
    assert list(row_labels(dict.fromkeys(names, 0.0)).items()) == [
        ("final", "E + M"),
        ("e_step", "E-step"),
        ("base_0_shot", "base model, 0-shot"),
        ("base_2_shot", "base model, 2-shot"),
        ("base_10_shot", "base model, 10-shot"),
        ("base_at_T0.8", "base model, T = 0.8"),
        ("direct_3_shot", "base model at once, 3-shot"),
        ("resampled", "exact, by resampling"),
    ]
    assert row_labels({"final/a": 0.0}) == {"final": "this run"}


class Shown(SentenceContinuation):
    headline = ("good_share", "vote_accuracy", "nats")

    def reference_rows(self):
        return [ReferenceRow("theirs", {"nats/x": 1.5, "good_share/x": 0.25})]


def cells(task, metrics) -> dict[str, list[str]]:
    """The cells of each row, by its label."""
    table = result_table(task, metrics)
    columns = [list(column.cells) for column in table.columns]
    return {label: [column[row] for column in columns[1:]] for row, label in enumerate(columns[0])}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0005, "0.05"),
        (0.00049, "0.049"),
        (0.000012, "0.0012"),
        (0.0, "0.0"),
        (0.001, "0.1"),
        (0.12345, "12.3"),
        (1.0, "100.0"),
        (0.9994, "99.9"),
        (0.9996, "99.96"),
        (0.999988, "99.9988"),
    ],
)
def test_a_rare_share_does_not_look_like_none_nor_one_of_nearly_all_like_all(value, shown):
    assert cells(Shown(), {"final/good_share/x": value})["this run"] == [shown]


def test_shares_are_in_percent_and_other_metrics_in_their_unit():
    metrics = {
        "final/good_share/x": 0.5, "final/nats/x": -12.3456, "base_0_shot/nats/x": 0.0005,
        "final/vote_accuracy/x": 0.5, "final/vote_accuracy_low/x": 0.404,
        "final/vote_accuracy_high/x": 0.596, "final/other/x": 3.0,
    }  # fmt: skip
    found = cells(Shown(), metrics)
    assert found == {
        "this run": ["50.0", "50.0\n40–60", "−12.3"],
        "base model, 0-shot": ["", "", "0.0005"],
        "† theirs": ["25.0", "", "1.5"],
    }


def test_the_table_is_printed_with_its_caption_and_unit():
    console = Console(width=120)
    with console.capture() as captured:
        console.print(result_table(Shown(), {"final/good_share/x": 0.5, "final/nats/x": 1.0}))
    text = " ".join(captured.get().split())
    assert "shares in %" in text and "good" in text
    # The number of random_number comes from the authors' notebook.
    assert "or its published code's" in text and "printed in the paper" not in text
    with console.capture() as captured:
        console.print(result_table(RandomNumbers(), {"final/kl/numbers": 0.5}))
    assert "%" not in captured.get()


# -- samples ---------------------------------------------------------------------------------------


def test_a_table_of_samples_keeps_its_cells_whatever_is_written(tmp_path):
    rows = {
        "this run": [samples("a | b", " one|two", "<b>x</b>", "", "fourth"), samples("c\nd", "e")],
        "base": [samples("a | b", "p\nq\n"), samples("c\nd", r"f\|")],
    }
    write_sample_table(tmp_path / "samples.md", rows)
    assert (tmp_path / "samples.md").read_text(encoding="utf-8").splitlines() == [
        "| prompt | this run | base |",
        "|---|---|---|",
        r"| a \| b | one\|two<br>&lt;b>x&lt;/b><br>(empty) | p<br>q |",
        r"| c<br>d | e | f\\\| |",
    ]


def test_a_table_of_samples_is_cut(tmp_path):
    drawn = [samples(str(i), "a", "b", "c") for i in range(5)]
    write_sample_table(tmp_path / "samples.md", {"one": drawn}, conditions=2, n=1)
    lines = (tmp_path / "samples.md").read_text().splitlines()
    assert lines[2:] == ["| 0 | a |", "| 1 | a |"]


def test_a_row_without_texts_has_no_column(tmp_path):
    rows = {"one": [samples("p", "a")], "at once": [samples("p", "")]}
    write_sample_table(tmp_path / "samples.md", rows)
    assert (tmp_path / "samples.md").read_text().startswith("| prompt | one |\n")


def test_samples_are_written_and_read(tmp_path):
    drawn = samples("ä", " 1", "\u2028x", facts={"target": {" 1": 1.0}})
    write_samples(tmp_path / "s.jsonl", [drawn, samples("b", "c")])
    first, second = [
        json.loads(line) for line in (tmp_path / "s.jsonl").read_bytes().split(b"\n")[:2]
    ]
    assert first["prompt"] == "ä" and first["singles"] == [" 1", "\u2028x"]
    assert first["log_reward"] == [-1.2346] * 2 and first["target"] == {" 1": 1.0}
    assert "target" not in second and "support_log_reward" not in second
    assert [record["prompt"] for record in read_lines(tmp_path / "s.jsonl")] == ["ä", "b"]
    assert read_lines(tmp_path / "none.jsonl") == []


def test_log_r_of_all_strings_is_kept_where_they_can_be_listed(tmp_path):
    drawn = dataclasses.replace(samples("p", " 1"), support_log_reward=(-0.12345, -2.0))
    write_samples(tmp_path / "s.jsonl", [drawn])
    assert read_lines(tmp_path / "s.jsonl")[0]["support_log_reward"] == [-0.1235, -2.0]


# -- figures ---------------------------------------------------------------------------------------

NUMBERS = {"final/kl/numbers": 0.1, "base_0_shot/kl/numbers": 0.5}


def number_samples(folder, prefix: str, name: str, *texts: str) -> None:
    task = RandomNumbers(prefix=prefix, low=3, high=5)
    condition = task.load(0).evaluation[0]
    drawn = ConditionSamples(condition, (), texts, (0.0,) * len(texts), (0.0,) * len(texts))
    write_samples(folder / name, [drawn])


@pytest.mark.parametrize("prefix", [" ", "", "#"])
def test_the_histogram_shows_the_share_of_each_number(tmp_path, prefix):
    texts = [f"{prefix}{n}" for n in (3, 3, 5)] + [f"{prefix}9"]
    number_samples(tmp_path, prefix, "samples.jsonl", *texts)
    number_samples(tmp_path, prefix, "samples_base_0_shot.jsonl", f"{prefix}4")
    figure = number_histogram(tmp_path, NUMBERS)
    ours, base = figure.axes
    assert [bar.get_height() for bar in ours.patches] == pytest.approx([0.5, 0.0, 0.25])
    assert [bar.get_height() for bar in base.patches] == pytest.approx([0.0, 1.0, 0.0])
    assert ours.get_title() == "this run: 4 samples, 25.0 % of them invalid"
    assert base.get_title() == "base model, 0-shot: 1 samples, 0.0 % of them invalid"
    assert ours.lines[0].get_ydata() == pytest.approx([1 / 3] * 3)
    assert [label.get_text() for label in ours.get_xticklabels()] == [
        f"{prefix.strip()}{n}" for n in (3, 4, 5)
    ]


def test_there_is_no_histogram_without_numbers_or_files(tmp_path):
    assert number_histogram(tmp_path, NUMBERS) is None
    number_samples(tmp_path, " ", "samples.jsonl", " 3")
    assert number_histogram(tmp_path, {"final/log_pf/x": 1.0}) is None
    assert len(number_histogram(tmp_path, {"final/kl/numbers": 0.1}).axes) == 1


LIKELY = {
    "final/diversity/one": 0.5, "final/log_likelihood/one": -9.0,
    "final/log_likelihood_max/one": -7.0,
    "base_at_T0.8/diversity/one": 0.3, "base_at_T0.8/log_likelihood/one": -8.0,
    "final/diversity/two": 0.1, "base_0_shot/log_likelihood/one": -5.0,
}  # fmt: skip


def test_likelihood_stands_over_diversity_where_both_are_known():
    figure = likelihood_diversity(LIKELY)
    (axes,) = figure.axes
    marks = [(*line.get_xdata(), *line.get_ydata(), line.get_marker()) for line in axes.lines]
    assert marks == [(0.5, -9.0, "o"), (0.5, -7.0, "^"), (0.3, -8.0, "o")]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["this run", "base model, T = 0.8"]
    assert (
        likelihood_diversity({"final/diversity/two": 0.1, "final/log_likelihood/one": 1.0}) is None
    )


def test_bars_are_the_shares_of_each_row():
    final = {
        "final/right_share/x": 0.75, "final/found_share/x": 0.5, "final/bleu/x": 0.9,
        "base_0_shot/right_share/x": 0.25, "final/invalid_share/x": 0.9,
    }  # fmt: skip
    figure = share_bars(final)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[0.75, 0.5], [0.25, pytest.approx(math.nan, nan_ok=True)]], "no bar is no 0"
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "right\n(of samples)\nx", "found\n(of translations)\nx",
    ]  # fmt: skip
    # No bar lies below the legend.
    assert axes.get_legend() is None and len(figure.legends[0].get_texts()) == 2
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in axes.containers]
    assert [sum(pair) / 2 for pair in zip(*centres, strict=True)] == pytest.approx([0, 1])
    assert share_bars({"final/bleu/x": 0.9, "base_0_shot/right_share/x": 0.5}) is None


def drawn_of(folder, final: dict) -> set[str]:
    (folder / "metrics.jsonl").write_text("")
    (folder / "metrics.json").write_text(json.dumps(final))
    paths = draw_all(folder)
    assert all(path.stat().st_size > 1000 and path.parent.name == "figures" for path in paths)
    return {path.stem for path in paths}


def test_every_figure_with_data_is_written_and_no_other(tmp_path):
    assert drawn_of(tmp_path, {"run/seed": 0.0}) == set()
    number_samples(tmp_path, " ", "samples.jsonl", " 3", " 4")
    assert drawn_of(tmp_path, NUMBERS) == {"histogram"}
    assert drawn_of(tmp_path, LIKELY) == {"likelihood_diversity"}
    failures = NUMBERS | LIKELY | {"final/invalid_share/numbers": 0.0}
    assert drawn_of(tmp_path, failures) == {"histogram", "likelihood_diversity"}
    everything = failures | {"final/right_share/one": 0.5}
    assert drawn_of(tmp_path, everything) == {"histogram", "likelihood_diversity", "shares"}
    assert not plt.get_fignums()


def test_all_samples_invalid_is_said_in_plain_digits(tmp_path):
    number_samples(tmp_path, " ", "samples.jsonl", *[" 9"] * 3)
    (axes,) = number_histogram(tmp_path, {"final/kl/numbers": 0.1}).axes
    assert axes.get_title() == "this run: 3 samples, 100.0 % of them invalid"


def test_figures_of_few_steps_have_whole_steps_and_a_loss_of_zero_is_none_in_powers_of_ten():
    records = [
        {"step": step, "train/loss": loss, "train/from_replay": 0.0, "train/phi_spread": 1.0,
         "train/exploration_temperature": 1.0, "eval/vote_accuracy/x": 0.5, "eval/single_accuracy/x": 0.5}
        for step, loss in ((1, 0.0), (2, 50.0))
    ]  # fmt: skip
    left, *_ = figures._loss_and_reward(records).axes
    assert left.get_yscale() == "log" and left.get_ylim()[0] == pytest.approx(40.0)
    for steps in (records, records[1:]):
        shown = figures._accuracy(steps, {"final/vote_accuracy/x": 0.5}).axes[0]
        low, high = shown.get_xlim()
        ticks = [tick for tick in shown.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)
    vote, single = shown.lines
    assert (
        vote.get_linestyle() != single.get_linestyle() and vote.get_marker() != single.get_marker()
    )
    assert shown.get_legend().handlelength >= 4
