"""Pages in a real, headless Chromium without network, at the width of a desk and of a telephone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from gfn_runner.report.__main__ import main
from gfn_runner.report.run_page import write_run_page
from gfn_runner.report.sweep_page import write_sweep_page

from ..report_folders import FAILED, grid, hostile_run, make_run, make_sweep, sample, training
from ..report_folders import SCRIPT as HOSTILE

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_pages.py"


def _script():
    spec = importlib.util.spec_from_file_location("check_pages", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check_pages = _script()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(check_pages.unavailable()), reason=check_pages.unavailable()),
]


@pytest.fixture(scope="module")
def chromium():
    with check_pages.browser() as started:
        yield started


def test_a_finished_an_unfinished_and_a_failed_run(chromium, tmp_path):
    make_run(tmp_path / "finished")
    make_run(tmp_path / "unfinished", steps=2, finished=False)
    make_run(tmp_path / "new", steps=0, finished=False)
    failed = make_run(tmp_path / "failed", steps=500, wanted=10_000, finished=False)
    (failed / "run.log").write_text(FAILED.replace("not finite", "not finite" * 30))
    for folder in sorted(tmp_path.iterdir()):
        assert check_pages.check(chromium, write_run_page(folder)) == [], folder.name


def test_long_words_and_odd_numbers(chromium, tmp_path):
    folder = make_run(tmp_path / ("very_long_name_" * 12), overrides=["task.x=" + "y" * 400])
    odd = {"train/lr": 1.23456e-9, "train/grad_norm": 4.5e12, "train/log_reward": -123456.7}
    records = [training(step, **{k: v * step for k, v in odd.items()}) for step in range(7, 300)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    (folder / "samples.jsonl").write_text(json.dumps(sample("z" * 500)) + "\n")
    assert check_pages.check(chromium, write_run_page(folder)) == []


def test_a_sweep_of_fifty_runs(chromium, tmp_path):
    jobs = grid(optimizer__lr=range(13), objective=("joint", "subtb"), seed=(0, 1))
    sweep = make_sweep(tmp_path / "s", *jobs)
    for number in range(40):
        make_run(
            sweep / str(number), seed=number % 2, steps=6 - number % 2, finished=number % 2 == 0
        )
    (sweep / "7/run.log").write_text(FAILED)
    page = write_sweep_page(sweep)
    assert check_pages.check(chromium, page, tmp_path / "shots") == []
    assert len(list((tmp_path / "shots").glob("*.png"))) == len(check_pages.WIDTHS)


def test_the_report_across_runs(chromium, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/a")
    make_run(tmp_path / "runs/b", objective={"_target_": "gfn_runner.objectives.losses.SubTB"})
    main(["runs"])
    assert check_pages.check(chromium, tmp_path / "report/report.html") == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<img src="http://example.org/x.png">', "asks for http://example.org/x.png"),
        ('<img alt="gone" src="data:image/png;base64,AAAA">', "a picture that does not load: gone"),
        ("<script>nothing()</script>", "script: nothing is not defined"),
        ('<p style="width:2000px">wide</p>', "the page is wider than the window"),
        ('<p>under</p><p style="margin-top:-1.2em">over</p>', "parts of the page overlap"),
        ('<table><td style="width:9px;overflow-wrap:anywhere">long words</table>', "letters below"),
        ('<div class="panel"><h4>empty</h4><div class="plot"></div></div>', "not drawn: empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(chromium, tmp_path, body, said):
    page = tmp_path / "page.html"
    page.write_text(f'<!DOCTYPE html><html><meta charset="utf-8"><body>{body}</body></html>')
    assert any(said in problem for problem in check_pages.check(chromium, page))


def test_what_a_reader_has_opened_stays_open_when_the_page_is_loaded_again(chromium, tmp_path):
    path = write_run_page(make_run(tmp_path / "r", steps=2, finished=False))
    page = chromium.new_page()
    try:
        page.goto(path.as_uri())
        is_open = lambda: page.locator("details").evaluate_all("all => all.map(e => e.open)")  # noqa: E731
        assert not any(is_open())
        page.locator("summary").first.click()
        page.wait_for_function("sessionStorage.length > 0")
        # Another number of charts, as a run has them while it goes on.
        path.write_text(path.read_text().replace(" charts without", "9 charts without"))
        page.reload()
        assert is_open() == [True, *[False] * (len(is_open()) - 1)]
    finally:
        page.close()


def test_scripts_in_a_run_are_shown_and_do_not_run(chromium, tmp_path):
    path = write_run_page(hostile_run(tmp_path / "r"))
    page = chromium.new_page()
    dialogs: list[str] = []
    try:
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        page.wait_for_selector("body.drawn")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert HOSTILE in page.inner_text("body") and not dialogs
    finally:
        page.close()


def test_pointing_at_a_run_highlights_its_curves(chromium, tmp_path):
    sweep = make_sweep(tmp_path / "s", *grid(seed=(0, 1)))
    for number in range(2):
        make_run(sweep / str(number), seed=number)
    page = chromium.new_page()
    try:
        page.goto(write_sweep_page(sweep).as_uri())
        page.wait_for_selector("body.drawn")
        page.hover('tr[data-run="run1"]')
        assert page.locator(".trace.on").count() == page.locator(".plot").count() > 10
        assert page.locator("body.pointed").count() == 1
    finally:
        page.close()


def test_a_browser_that_cannot_decompress_gets_a_message(chromium, tmp_path):
    path = write_run_page(make_run(tmp_path / "r"))
    page = chromium.new_page()
    try:
        page.add_init_script("delete window.DecompressionStream")
        page.goto(path.as_uri())
        assert "No chart" in page.locator(".plot").first.inner_text()
    finally:
        page.close()
