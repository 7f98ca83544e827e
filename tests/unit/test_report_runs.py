"""Runs are found, read and grouped into methods, out of made-up folders."""

from __future__ import annotations

import os
import platform

import pytest

from gfn_runner.errors import UserError
from gfn_runner.report.methods import methods_of
from gfn_runner.report.runs import find_runs, read_run
from gfn_runner.report.summary import cell, sections
from gfn_runner.runtime.run_lock import acquire_run_lock

from ..report_folders import PPO, PROMPTING, SFT, SUBTB, accuracy, labels, leave_run, read

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

PROMPTED = {"_target_": PROMPTING}


def test_runs_are_found_at_any_depth_once_and_not_within_a_run(tmp_path):
    for name in ("a/seed0", "a/seed1", "b"):
        leave_run(tmp_path / name, {})
    leave_run(tmp_path / "b/evaluations/later", {})
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.yaml").write_text("wandb_version: 1\n")
    found = [str(path) for path in find_runs(["a", "a/seed0", "b", "."])]
    assert found == ["a/seed0", "a/seed1", "b"]
    assert [str(path) for path in find_runs(["a/seed*"])] == ["a/seed0", "a/seed1"]
    with pytest.raises(UserError) as caught:
        find_runs(["c", "c/config.yaml", "none", "no*"])
    nothing, missing = "no runs found", "there is no such folder"
    said = [(problem.where, problem.what) for problem in caught.value.problems]
    assert said == [("c", nothing), ("c/config.yaml", nothing), ("none", missing), ("no*", missing)]


def test_a_run_says_whether_and_why_it_has_not_finished(tmp_path):
    stopped = leave_run(tmp_path / "stopped")
    (stopped / "metrics.jsonl").write_text(
        '{"step": 3, "train/loss": 1, "time": 0}\n{"step": 4, "ti'
    )
    assert str(read_run(stopped).state) == "running at optimizer step 3 of 10"
    for holder, name in (
        ("", "interrupted"),
        (f"process 999999999 on {platform.node()}", "interrupted"),
        ("process 1 on another", "running"),
    ):
        (stopped / ".lock").write_text(holder)
        assert read_run(stopped).state.name == name
    (stopped / ".lock").unlink()
    with acquire_run_lock(stopped):
        assert read_run(stopped).state.name == "running"
    failed = leave_run(tmp_path / "failed")
    (failed / "run.log").write_text("WARNING a\nERROR b: non-finite loss\n\n")
    run = read_run(failed)
    assert str(run.state) == "failed at optimizer step 0 of 10: non-finite loss"
    assert run.log == ["WARNING a", "ERROR b: non-finite loss"]


@pytest.mark.parametrize(
    ("config", "is_finished"),
    [
        ({"trainer": {"max_steps": 20}}, False),
        ({"em": {"rounds": 2}}, False),
        # Of baselines those that train have steps to do, too.
        ({"trainer": {"max_steps": 20}, "baseline": PPO}, False),
        ({"trainer": {"max_steps": 20}, "baseline": PROMPTED}, True),
        ({"trainer": {"max_steps": 20}, "baseline": {"_target_": "gfn_runner.gone.Gone"}}, True),
    ],
)
def test_a_run_of_more_steps_than_it_has_done_goes_on(config, is_finished, tmp_path):
    run = read_run(leave_run(tmp_path / "r", {}, **config))
    assert run.is_finished is is_finished and (is_finished or run.state.steps == 20)


def test_numbers_that_are_not_finite_are_missing(tmp_path):
    leave_run(tmp_path / "r", {"final/a/x": None, "final/b/x": 1.0})
    assert "final/a/x" not in read_run(tmp_path / "r").metrics
    (tmp_path / "r/metrics.json").write_text('{"final/b/x": NaN, "final/c/x": 2}')
    assert read_run(tmp_path / "r").metrics == {"final/c/x": 2.0}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("metrics.json", text) for text in ("{", "[]", '{"final/a/x": "many"}', "\xff")),
        *(("config.yaml", f"task:{text}") for text in (" arithmetic", "\n- x: [", " {name: x}")),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, text):
    leave_run(tmp_path / "good", {})
    folder = leave_run(tmp_path / "bad", {})
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read("good", "bad")
    (problem,) = caught.value.problems
    assert problem.where == f"bad/{name}" and problem.what.startswith("cannot be read")


def test_no_finished_run_is_a_mistake_that_says_why(tmp_path):
    folder = leave_run(tmp_path / "r")
    (folder / "run.log").write_text("ERROR out of luck\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step-3.ckpt").touch()
    with pytest.raises(UserError) as caught:
        read("r")
    text = str(caught.value)
    assert "failed at optimizer step 0 of 10" in text and "run.log: ERROR out of luck" in text
    assert "resume=r" in text


def test_a_method_is_called_by_what_sets_it_apart(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5, 0.1))
    leave_run(tmp_path / "b", accuracy(0.5, 0.1), objective=SUBTB, trainer={"max_steps": 5})
    assert labels("a") == ["GFlowNet", "base model, 0-shot"]
    assert labels("a", "b") == [
        "GFlowNet (objective=JointBalance, trainer.max_steps=10, trainer.accumulate_grad_batches=1)",
        "GFlowNet (objective=SubTB, trainer.max_steps=5)",
        "base model, 0-shot",
    ]


def test_what_has_no_effect_on_the_numbers_sets_nothing_apart(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5))
    trainer = {"max_steps": 10, "accumulate_grad_batches": 1, "log_every_n_steps": 7}
    others = {"output": "elsewhere", "num_threads": 2, "logger": {"wandb": None}, "baseline": None}
    leave_run(tmp_path / "b", accuracy(0.6), seed=1, trainer=trainer, **others)
    (method,) = methods_of(read("."))
    assert [run.seed for run in method.runs] == [0, 1]


def test_rows_without_training_do_not_depend_on_it_but_on_model_and_data(tmp_path):
    leave_run(tmp_path / "a", accuracy(None, 0.1))
    leave_run(tmp_path / "b", accuracy(None, 0.2), seed=1, objective=SUBTB)
    assert labels("a", "b") == ["base model, 0-shot"]
    leave_run(tmp_path / "c", accuracy(None, 0.2), lm={"name": "gpt2", "lora": {"rank": 8}})
    names = [f"base model, 0-shot (lm.name={name})" for name in ("embedded", "gpt2")]
    assert labels("a", "b", "c") == names


def test_trained_baselines_are_called_by_their_class(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5))
    for clip in (0.1, 0.2):
        leave_run(tmp_path / f"p{clip}", accuracy(0.4), baseline=PPO | {"clip": clip})
    leave_run(tmp_path / "s", accuracy(0.3), baseline=SFT)
    assert labels(".") == ["GFlowNet", "PPO (baseline.clip=0.1)", "PPO (baseline.clip=0.2)", "SFT"]


def test_that_baselines_have_no_em_is_no_difference_between_them(tmp_path):
    em, off = {"rounds": 1, "m_lr": 0.1}, {"rounds": 0, "m_lr": 0.1}
    ours = {"final/a/x": 1.0, "e_step/a/x": 0.5, "m_step/loss": 3.0, "base_0_shot/a/x": 0.1}
    leave_run(tmp_path / "a", ours | {"run/steps": 10}, em=em)
    leave_run(tmp_path / "s", {"final/a/x": 0.3}, baseline=SFT, em=off)
    leave_run(tmp_path / "p", {"base_0_shot/a/x": 0.1}, baseline=PROMPTED, em=off)
    assert labels(".") == ["GFlowNet, E + M", "SFT", "GFlowNet, E-step", "base model, 0-shot"]
    # Of one's own methods it is one.
    leave_run(tmp_path / "b", {"final/a/x": 1.0, "e_step/a/x": 0.5}, em={**em, "m_lr": 0.2})
    assert "GFlowNet, E + M (em.m_lr=0.2)" in labels(".")


def test_a_seed_counts_once_and_the_run_made_for_a_row_comes_first(tmp_path):
    leave_run(tmp_path / "own", accuracy(None, 0.1), baseline=PROMPTED)
    leave_run(tmp_path / "newer", accuracy(0.5, 0.9))
    leave_run(tmp_path / "older", accuracy(0.4))
    leave_run(tmp_path / "trained", accuracy(None, 0.8) | {"final/other/x": 1.0}, baseline=PPO)
    for name, when in (("own", 1), ("newer", 3), ("older", 2), ("trained", 4)):
        os.utime(tmp_path / name / "metrics.json", (when, when))
    (section,) = sections(read("."))
    assert [(m.label, cell(m, "vote_accuracy/3_operands")) for m in section.methods] == [
        ("GFlowNet", "50.0"),
        ("base model, 0-shot", "10.0"),
    ]
    assert section.notes[1:] == (
        "GFlowNet: measured more than once; not used: older (seed 0).",
        "base model, 0-shot: measured more than once; not used: newer (seed 0), trained (seed 0).",
    )
