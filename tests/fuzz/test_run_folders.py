"""Run folders with spoiled files: a page that says what is missing or one error, and the folder as it was."""

from __future__ import annotations

import dataclasses
import functools
import random
import shutil
from pathlib import Path

import pytest
import yaml

from gfn_runner.callbacks.checkpoint import DurableCheckpointIO
from gfn_runner.cli.saved import hydra_arguments
from gfn_runner.config.run_config import RunConfig
from gfn_runner.errors import UserError
from gfn_runner.inference import saved_config
from gfn_runner.report.__main__ import main as report
from gfn_runner.run.resume import newest_unfinished, start_of
from gfn_runner.runtime.json_lines import write_lines
from tests.budget import cases
from tests.fuzz.bounded import at_most
from tests.fuzz.spoiling import spoiled
from tests.report_folders import make_run, make_sweep, sample
from tests.runs import SMALL, composed, contents

WRONG = (
    b"", b"null", b"3", b"[]", b"{}", b'"x"', b"[[]]", b"[1, 2]", b'{"a": 1}', b"{" * 500, b"\xff\xfe\0",
    b"\0" * 100,
    b"task:\n", b"task: x\n", b"task: {_target_: 3}\n", b"task: {_target_: x.Y}\ntrainer: []\n", b"- a\n- b\n",
    b"task: {_target_: x.Y}\ncallbacks: 3\nlm: 3\nobjective: []\nseed: x\nem: 3\n", b"&a [*a]\n",
    b"a: &a [*a, *a]\n", b"%TAG ! x\n",
    b'{"step": 1}\n', b'{"step": "x"}\n3\n[]\nnull\n', b'{"step": 1e999, "train/loss": 1}\n',
    b'{"step": 1, "train/loss": ' + b"9" * 500 + b"}\n",
    b'{"step": -1, "time": "x", "train/loss": "x"}\n', b'{"step": 1, "time": null, "final/x/y": []}\n',
    b"[" * 2_000,
    b'{"run/steps": "x"}', b'{"run/steps": ' + b"9" * 500 + b"}", b'{"final/a/b/c/d": 1, "": 2, "/": 3}',
    b'{"singles": [], "group": 3}\n', b'{"singles": ["a"], "log_reward": [], "log_pf": null}\n',
    b'{"jobs": [], "overrides": 3}',
    b'{"jobs": [{"number": 0}], "overrides": []}',
    b'{"jobs": [{"number": "x", "folder": "../..", "overrides": [3]}], "overrides": []}',
    b"<script>alert(1)</script>",
    b"task: {_target_: x.Y}\nlm:\nobjective:\nsampling:\ntrainer:\nevaluation:\ncallbacks:\nem:\nseed:\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A sweep's folder with a finished run, and one that can go on."""
    folder = tmp_path_factory.mktemp("good") / "sweep"
    make_sweep(folder, "seed=0", "seed=1")
    make_run(folder / "0")
    config = settings().values
    run = make_run(folder / "1", steps=4, wanted=10, finished=False, **config)
    lines = [*SMALL, "task=arithmetic"]
    (run / "overrides.yaml").write_text(yaml.safe_dump(lines), encoding="utf-8")
    write_lines(run / "samples_base_0_shot.jsonl", [sample("a"), sample("b")])
    (run / "answer_adapter").mkdir()
    (run / "answer_adapter/em.json").write_text('{"m_steps": 0, "metrics": {}}\n', encoding="utf-8")
    for step in (2, 4):
        path = run / f"checkpoints/step-{step:07d}.ckpt"
        DurableCheckpointIO().save_checkpoint({"step": step}, path)
    return folder


def spoil(rng: random.Random, folder: Path) -> str:
    """Damage one or two files; returns what was done."""
    done = []
    for _ in range(rng.randint(1, 2)):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path, other = rng.choice(files), rng.choice(files)
        kind = rng.choice(("spoiled", "wrong", "wrong", "swapped", "gone", "a folder"))
        if kind == "spoiled":
            path.write_bytes(spoiled(rng, path.read_bytes()))
        elif kind == "wrong":
            own = rng.choice(WRONG)
            path.write_bytes(own)
            kind = f"{own[:60]!r}"
        elif kind == "swapped":
            one, two = path.read_bytes(), other.read_bytes()
            path.write_bytes(two)
            other.write_bytes(one)
            kind = f"swapped with {other.relative_to(folder)}"
        else:
            path.unlink()
            if kind == "a folder":
                path.mkdir()
        done.append(f"{path.relative_to(folder)}: {kind}")
    return "; ".join(done)


def kept(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """All files but pages, which are written there, and the lock."""
    return {p: c for p, c in contents(folder).items() if p.name not in ("report.html", ".lock")}


def check_report(folder: Path, out: Path, what: str, capsys) -> None:
    before = kept(folder)
    for arguments in (["--no-figures", "--out", str(out)], ["--pages"]):
        try:
            with at_most(30.0):
                report([str(folder), *arguments])
        except SystemExit as stop:
            assert stop.code == 2, what
            said = capsys.readouterr().err
            assert "no report was written" in said and len(said.splitlines()) > 1, what
    assert kept(folder) == before, what


@functools.cache
def settings() -> RunConfig:
    return composed(*SMALL, "trainer.max_steps=10")


def check_resume(run: Path, what: str) -> None:
    before = kept(run)
    for resume in (str(run), "auto"):
        config = dataclasses.replace(settings(), resume=resume)
        for step in (
            functools.partial(hydra_arguments, [f"resume={resume}"]),
            functools.partial(start_of, config, run),
            functools.partial(newest_unfinished, run.parent.parent, config, SMALL),
        ):
            try:
                with at_most(10.0):
                    step()
            except UserError as error:
                assert error.problems and all(p.what for p in error.problems), what
    # A damaged checkpoint is put aside, under another name; nothing else is touched.
    after = {p: c for p, c in kept(run).items() if "checkpoints" not in p.parts}
    assert after == {p: c for p, c in before.items() if "checkpoints" not in p.parts}, what


@pytest.mark.parametrize(
    "wrong",
    [w if w % 4 == 0 else pytest.param(w, marks=pytest.mark.slow) for w in range(len(WRONG))],
)
def test_every_file_with_every_wrong_content(wrong, good, tmp_path, capsys):
    """All files of both runs at once: each reader meets it."""
    folder = tmp_path / "sweep"
    shutil.copytree(good, folder)
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            path.write_bytes(WRONG[wrong])
    check_report(folder, tmp_path / "out", repr(WRONG[wrong][:60]), capsys)
    check_resume(folder / "1", repr(WRONG[wrong][:60]))
    for path in folder.rglob("config.yaml"):
        path.write_bytes(WRONG[wrong])
    check_report(folder, tmp_path / "out", f"with config {WRONG[wrong][:60]!r}", capsys)
    check_resume(folder / "1", f"with config {WRONG[wrong][:60]!r}")


@pytest.mark.parametrize("content", WRONG, ids=range(len(WRONG)))
def test_a_policy_with_a_wrong_config_is_refused(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught, at_most(20.0):
        saved_config(tmp_path)
    assert all(problem.what for problem in caught.value.problems)


def test_spoiled_runs(good, tmp_path, capsys):
    rng = random.Random(cases(1))
    for number in range(cases(5)):
        folder = tmp_path / str(number) / "sweep"
        shutil.copytree(good, folder)
        what = spoil(rng, folder)
        check_report(folder, tmp_path / "out", what, capsys)
        check_resume(folder / "1", what)
        shutil.rmtree(folder.parent)
