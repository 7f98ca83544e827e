"""Rows, tables of samples and the figures that compare them, out of made-up numbers and files."""

from __future__ import annotations

import dataclasses
import json

import matplotlib.pyplot as plt

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples, ReferenceRow
from gfn_runner.report.figures import draw_all
from gfn_runner.report.samples import write_sample_table, write_samples
from gfn_runner.report.table import result_table
from gfn_runner.runtime.json_lines import read_lines
from gfn_runner.tasks.random_number import RandomNumbers


def samples(prompt: str, *singles: str, facts: dict | None = None) -> ConditionSamples:
    condition = Condition(prompt, prompt, (), facts=facts or {})
    n = len(singles)
    return ConditionSamples(condition, (), singles, (-1.23456,) * n, (-2.0,) * n)


def test_shares_are_in_percent_and_other_metrics_in_their_unit():
    metrics = {
        "final/good_share/x": 0.5, "final/nats/x": -12.3456, "base_0_shot/nats/x": 0.0005,
        "final/vote_accuracy/x": 0.5, "final/vote_accuracy_low/x": 0.404,
        "final/vote_accuracy_high/x": 0.596, "final/other/x": 3.0,
    }  # fmt: skip
    headline = ("good_share", "vote_accuracy", "nats")
    theirs = ReferenceRow("theirs", {"nats/x": 1.5, "good_share/x": 0.25})
    assert [list(row) for row in result_table(headline, metrics, [theirs]).rows] == [
        ["this run", "50.0", "50.0\n40–60", "−12.3"],
        ["base model, 0-shot", "", "", "0.0005"],
        ["† theirs", "25.0", "", "1.5"],
    ]


def test_a_table_of_samples_keeps_its_cells_whatever_is_written(tmp_path):
    rows = {
        "this run": [samples("a | b", " one|two", "<b>x</b>", "", "fourth"), samples("c\nd", "e")],
        "base": [samples("a | b", "p\nq\n"), samples("c\nd", r"f\|")],
    }
    write_sample_table(tmp_path / "samples.md", rows)
    assert (tmp_path / "samples.md").read_text(encoding="utf-8").splitlines() == [
        "| prompt | this run | base |",
        "|---|---|---|",
        r"| a \| b | one\|two<br>\<b>x\</b><br>(empty) | p<br>q |",
        r"| c<br>d | e | f\\\| |",
    ]


def test_samples_are_written_and_read(tmp_path):
    drawn = samples("ä", " 1", "\u2028x", facts={"target": {" 1": 1.0}})
    # Where all strings can be listed.
    drawn = dataclasses.replace(drawn, support_log_reward=(-0.12345, -2.0))
    write_samples(tmp_path / "s.jsonl", [drawn, samples("b", "c")])
    first, second = [
        json.loads(line) for line in (tmp_path / "s.jsonl").read_bytes().split(b"\n")[:2]
    ]
    assert first["prompt"] == "ä" and first["singles"] == [" 1", "\u2028x"]
    assert first["log_reward"] == [-1.2346] * 2 and first["target"] == {" 1": 1.0}
    assert first["support_log_reward"] == [-0.1235, -2.0]
    assert "target" not in second and "support_log_reward" not in second
    assert [record["prompt"] for record in read_lines(tmp_path / "s.jsonl")] == ["ä", "b"]
    assert read_lines(tmp_path / "none.jsonl") == []


NUMBERS = {"final/kl/numbers": 0.1, "base_0_shot/kl/numbers": 0.5}


LIKELY = {
    "final/diversity/one": 0.5, "final/log_likelihood/one": -9.0,
    "final/log_likelihood_max/one": -7.0,
    "base_at_T0.8/diversity/one": 0.3, "base_at_T0.8/log_likelihood/one": -8.0,
    "final/diversity/two": 0.1, "base_0_shot/log_likelihood/one": -5.0,
}  # fmt: skip


def drawn_of(folder, final: dict) -> set[str]:
    (folder / "metrics.jsonl").write_text("")
    (folder / "metrics.json").write_text(json.dumps(final))
    paths = draw_all(folder)
    assert all(path.stat().st_size > 1000 and path.parent.name == "figures" for path in paths)
    return {path.stem for path in paths}


def test_every_figure_with_data_is_written_and_no_other(tmp_path):
    likely, histogram = "likelihood_diversity", "histogram"
    assert drawn_of(tmp_path, {"run/seed": 0.0}) == set()
    assert drawn_of(tmp_path, LIKELY) == {likely}
    (condition,) = RandomNumbers(low=3, high=5).load(0).evaluation
    drawn = ConditionSamples(condition, (), (" 3", " 4"), (0.0,) * 2, (0.0,) * 2)
    write_samples(tmp_path / "samples.jsonl", [drawn])
    assert drawn_of(tmp_path, NUMBERS) == {histogram}
    failures = NUMBERS | LIKELY | {"final/invalid_share/numbers": 0.0}
    assert drawn_of(tmp_path, failures) == {histogram, likely}
    everything = failures | {"final/right_share/one": 0.5}
    assert drawn_of(tmp_path, everything) == {histogram, likely, "shares"}
    assert not plt.get_fignums()
