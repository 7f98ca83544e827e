"""Pages of reports across runs: samples side by side, equal compute, files, bad input."""

from __future__ import annotations

import re

import pytest
import yaml

from gfn_runner.report.__main__ import main
from gfn_runner.report.equal_compute import equal_compute
from gfn_runner.report.side_by_side import sample_table
from gfn_runner.runtime.json_lines import write_lines

from ..report_folders import accuracy, leave_run, only_section, record, whole_run

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_methods_stand_side_by_side_for_the_same_conditions(tmp_path):
    folder = leave_run(tmp_path / "a", accuracy(0.5, 0.1))
    # A condition of one method only comes after those that both have.
    own = [
        record(["z"], [-9.0], [-9.0], "alone"),
        record([" 1", " 2", " 2"], [-1.0, -2.0, -2.0], [0.0] * 3),
    ]
    write_lines(folder / "samples.jsonl", own)
    write_lines(folder / "samples_base_0_shot.jsonl", [record(["x", "x"], [], [], answer=-11)])
    assert sample_table(only_section("a")).rows == [
        ("Question: some", "GFlowNet", "2", "67 %", "−2.00"),
        ("", "base model, 0-shot", "x", "100 %", ""),
        ("Question: alone", "GFlowNet", "z", "100 %", "−9.00"),
    ]
    (folder / "samples.jsonl").unlink()
    write_lines(folder / "samples_base_0_shot.jsonl", [record([""], [], [])])
    assert sample_table(only_section("a")) == "no method left single samples"


def test_policies_stand_beside_as_many_draws_and_the_table_tells_where_they_cross(tmp_path):
    metrics = {
        "final/vote_accuracy/x": 0.9, "final/single_accuracy/x": 0.55, "final/single_accuracy/y": 0.25,
        "resampled_1/single_accuracy/x": 0.25, "resampled_4/single_accuracy/x": 0.5,
        "resampled_16/single_accuracy/x": 0.75, "best_of_1/single_accuracy/x": 0.5,
        "best_of_4/single_accuracy/x": 0.75, "best_of_4/single_accuracy/y": 0.25,
    }  # fmt: skip
    evaluation = {"votes": 10}
    leave_run(tmp_path / "a", metrics, evaluation=evaluation)
    # The second seed's policy is above 16 resampled strings, the mean of the two is not.
    second = metrics | {"final/single_accuracy/x": 0.85}
    leave_run(tmp_path / "b", second, seed=1, evaluation=evaluation)
    table = equal_compute(only_section("."))
    assert table.header == (
        "single accuracy (%)", "set", "strings per question", "policy",
        "best of", "best of reaches it at", "resampled", "resampled reaches it at",
    )  # fmt: skip
    rows = [list(row) for row in table.rows]
    assert rows == [
        ["GFlowNet, one sample", "x", "1", "70.0 ± 15.0", "50.0", "n = 4", "25.0", "n = 16"],
        ["GFlowNet, vote", "x", "10", "90.0", "", "none up to 4", "75.0 (n = 16)", "none up to 16"],
        ["GFlowNet, one sample", "y", "1", "25.0", "25.0 (n = 4)", "n = 4", "", ""],
    ]
    main([".", "--out", "made", "--no-figures"])
    assert "### At equal test-time compute" in (tmp_path / "made/report.md").read_text()


def test_pages_and_pictures_lie_side_by_side_and_the_html_needs_nothing_but_itself(
    tmp_path, capsys
):
    whole_run(tmp_path)
    main(["a", "--out", "deep/made"])
    made = tmp_path / "deep/made"
    names = sorted(path.name for path in made.iterdir())
    assert names == [
        "arithmetic_calibration.png", "arithmetic_compute.png",
        "arithmetic_likelihood_diversity.png", "report.html", "report.md",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["made"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in made.glob("*.png"))
    text = (made / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)) == set(names[:3])
    assert "- histogram: no samples of a table of values" in text
    assert "deep/made/report.md" in capsys.readouterr().out
    page = (made / "report.html").read_text(encoding="utf-8")
    tags = re.findall(r"<[a-z][^>]*>", page)
    assert not [tag for tag in tags if "http:" in tag or "https:" in tag or "href" in tag]
    sources = [re.search(r'src="([^"]*)"', tag)[1] for tag in tags if "src" in tag]
    assert len(sources) == 3 and all(s.startswith("data:image/png;base64,iVBOR") for s in sources)
    assert "<script" not in page and "&lt;script src=" in page and "@import" not in page
    assert page.count('<div class="wide"><table') == 4


def test_a_report_that_fails_leaves_the_old_one(tmp_path, capsys, monkeypatch):
    whole_run(tmp_path)
    broken = leave_run(tmp_path / "broken", accuracy(0.5))
    (broken / "samples.jsonl").write_text('{"group": \n')
    main(["a", "--no-figures"])
    (tmp_path / "report/report.md").write_text("old")
    for arguments, said in (
        (["none"], "none: there is no such folder"),
        (["a", "--metrics", "none"], "--metrics: no run has none"),
        (["a", "--out", "a/config.yaml"], "--out: a/config.yaml is a file"),
        (["a", "--out", "a/config.yaml/x"], "config.yaml"),
        (["broken"], "broken/samples.jsonl"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        err = capsys.readouterr().err
        assert caught.value.code == 2 and "no report was written" in err and said in err

    def no_figure(*_):
        raise RuntimeError("no figure")

    monkeypatch.setattr("gfn_runner.report.method_figures.draw", no_figure)
    with pytest.raises(RuntimeError, match="no figure"):
        main(["a"])
    assert (tmp_path / "report/report.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "broken", "report"]


def test_texts_and_commands_are_escaped(tmp_path):
    whole_run(tmp_path)
    (tmp_path / "a/overrides.yaml").write_text(yaml.safe_dump(["task=some", "x=a|b", "y=_c_ *d*"]))
    main(["a", "--no-figures"])
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    html = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    cell = "\\<script src='http://example.com/x.js'>\\</script> \\| \\`x\\` \\*y\\* !\\[z](http://example.com)"
    assert f"| GFlowNet | {cell} | 50 % |" in text
    assert "`python -m gfn_runner task=some 'x=a\\|b' 'y=_c_ *d*' seed=0`" in text
    assert "task=some &#39;x=a|b&#39; &#39;y=_c_ *d*&#39; seed=0</code>" in html
