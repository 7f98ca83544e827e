"""Reports across runs: methods, tables, notes, figures and pages, out of made-up run folders."""

from __future__ import annotations

import json
import math
import os
import re

import matplotlib.pyplot as plt
import pytest
import yaml

import gfn_runner.tasks.arithmetic
import gfn_runner.tasks.translation
from gfn_runner.errors import UserError
from gfn_runner.report.__main__ import main
from gfn_runner.report.across import calibration, compute, draw, evidence, histograms
from gfn_runner.report.across import likelihood_against_diversity as likelihood
from gfn_runner.report.compose import results
from gfn_runner.report.equal_compute import equal_compute
from gfn_runner.report.methods import methods_of
from gfn_runner.report.pages import Code, Heading, Items, Picture, Table, Text, markdown
from gfn_runner.report.runs import find_runs, read_run, read_runs
from gfn_runner.report.side_by_side import sample_table
from gfn_runner.report.summary import cell, commands, sections, spread
from gfn_runner.report.web import html_page
from gfn_runner.runtime.json_lines import write_lines

ARITHMETIC = "gfn_runner.tasks.arithmetic.IntegerArithmetic"
CONTINUATION = "gfn_runner.tasks.continuation.SentenceContinuation"
NUMBERS = "gfn_runner.tasks.random_number.RandomNumbers"
JOINT = {"_target_": "gfn_runner.objectives.losses.JointBalance", "between": 1.0}
SUBTB = {"_target_": "gfn_runner.objectives.losses.SubTB", "lam": 0.9}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def make_run(folder, metrics=None, *, seed=0, task=ARITHMETIC, commit="a" * 40, **config):
    """A run's folder as a run leaves it; ``metrics=None`` for one that has not finished."""
    folder.mkdir(parents=True)
    steps = 10
    whole = {
        "task": {"_target_": task},
        "objective": JOINT,
        "lm": {"name": "embedded", "device": "auto", "lora": {"rank": 4}},
        "sampling": {"conditions": 2, "samples": 4},
        "trainer": {"max_steps": steps, "accumulate": 1, "threads": None},
        "callbacks": {"tempering": {"start": 1.0, "end": 0.5, "steps": 5, "shape": "linear"}},
        "seed": seed,
        "output": "outputs",
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(["task=some", f"seed={seed}"]))
    git = {"commit": commit, "changed": False}
    (folder / "environment.json").write_text(json.dumps({"git": git}))
    if metrics is not None:
        facts = {"run/seed": seed, "run/steps": steps, "run/minutes": 1.0, "train/loss": 0.5}
        (folder / "metrics.json").write_text(json.dumps(metrics | facts))
    return folder


def accuracy(final, base=None, **others):
    """Metrics of arithmetic at three operands."""
    found = {} if final is None else {"final/vote_accuracy/3_operands": final}
    found |= {} if base is None else {"base_0_shot/vote_accuracy/3_operands": base}
    return found | others


def read(*folders):
    return read_runs(find_runs([str(folder) for folder in folders]))


def labels(*folders):
    return [method.label for method in methods_of(read(*folders))]


# -- folders ---------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_once_and_not_within_a_run(tmp_path):
    for name in ("a/seed0", "a/seed1", "b"):
        make_run(tmp_path / name, {})
    make_run(tmp_path / "b/evaluations/later", {})
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.yaml").write_text("wandb_version: 1\n")
    found = [str(path) for path in find_runs(["a", "a/seed0", "b", "."])]
    assert found == ["a/seed0", "a/seed1", "b"]
    assert [str(path) for path in find_runs(["a/seed*"])] == ["a/seed0", "a/seed1"]


def test_every_place_without_a_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as caught:
        find_runs(["empty", "file", "none", "no*"])
    said = [(problem.where, problem.what) for problem in caught.value.problems]
    assert said == [
        ("empty", "no run lies here"),
        ("file", "no run lies here"),
        ("none", "there is no such folder"),
        ("no*", "there is no such folder"),
    ]


def test_a_run_says_whether_and_why_it_has_not_finished(tmp_path):
    stopped = make_run(tmp_path / "stopped")
    (stopped / "metrics.jsonl").write_text('{"step": 3, "time": 0}\n{"step": 4, "ti')
    assert read_run(stopped).status == "unfinished"
    assert read_run(stopped).why.startswith("no metrics.json, optimizer step 3 of 10 reached")
    failed = make_run(tmp_path / "failed")
    (failed / "run.log").write_text("WARNING a\nERROR b: non-finite loss\n\n")
    run = read_run(failed)
    assert (run.status, run.log) == ("failed", ("WARNING a", "ERROR b: non-finite loss"))
    resumed = make_run(tmp_path / "resumed", {}, trainer={"max_steps": 20})
    assert read_run(resumed).status == "unfinished"
    assert "step 10, config.yaml asks for 20" in read_run(resumed).why
    # Of baselines those that train have steps to do, too.
    for name, status in (("Prompting", "finished"), ("PPO", "unfinished"), ("Gone", "finished")):
        baseline = {"_target_": f"gfn_runner.baselines.methods.{name}"}
        folder = make_run(tmp_path / name, {}, trainer={"max_steps": 20}, baseline=baseline)
        assert read_run(folder).status == status
    rounds = make_run(tmp_path / "em", {}, em={"rounds": 2})
    assert "asks for 20" in read_run(rounds).why


def test_numbers_that_are_not_finite_are_missing(tmp_path):
    make_run(tmp_path / "r", {"final/a/x": None, "final/b/x": 1.0})
    assert "final/a/x" not in read_run(tmp_path / "r").metrics
    (tmp_path / "r/metrics.json").write_text('{"final/b/x": NaN, "final/c/x": 2}')
    assert read_run(tmp_path / "r").metrics == {"final/c/x": 2.0}


@pytest.mark.parametrize("text", ["{", "[]", '{"final/a/x": "many"}', "\xff"])
def test_metrics_that_cannot_be_read_are_named(tmp_path, text):
    make_run(tmp_path / "good", {})
    folder = make_run(tmp_path / "bad", {})
    (folder / "metrics.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError) as caught:
        read("good", "bad")
    (problem,) = caught.value.problems
    assert problem.where == "bad/metrics.json" and problem.what.startswith("cannot be read")


@pytest.mark.parametrize("text", ["task: arithmetic", "task:\n- x: [", "task: {name: x}"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    folder = make_run(tmp_path / "bad", {})
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad/config\.yaml: cannot be read"):
        read("bad")


def test_no_finished_run_is_a_mistake_that_says_why(tmp_path):
    folder = make_run(tmp_path / "r")
    (folder / "run.log").write_text("ERROR out of luck\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step-3.ckpt").touch()
    with pytest.raises(UserError) as caught:
        read("r")
    text = str(caught.value)
    assert "no optimizer step of 10 reached" in text and "run.log: ERROR out of luck" in text
    assert "resume=r" in text


# -- methods ---------------------------------------------------------------------------------------


def test_a_method_is_called_by_what_sets_it_apart(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5, 0.1))
    make_run(tmp_path / "b", accuracy(0.5, 0.1), objective=SUBTB, trainer={"max_steps": 5})
    assert labels("a") == ["GFlowNet", "base model, 0-shot"]
    assert labels("a", "b") == [
        "GFlowNet (objective=JointBalance, trainer.max_steps=10, trainer.accumulate=1)",
        "GFlowNet (objective=SubTB, trainer.max_steps=5)",
        "base model, 0-shot",
    ]


def test_an_objectives_own_settings_count_among_runs_of_it(tmp_path):
    for number, objective in enumerate((JOINT, SUBTB, SUBTB | {"lam": 0.5})):
        make_run(tmp_path / str(number), accuracy(0.5), objective=objective)
    assert labels(".") == [
        "GFlowNet (objective=JointBalance)",
        "GFlowNet (objective=SubTB, objective.lam=0.9)",
        "GFlowNet (objective=SubTB, objective.lam=0.5)",
    ]


def test_what_has_no_effect_on_the_numbers_sets_nothing_apart(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5))
    make_run(
        tmp_path / "b",
        accuracy(0.6),
        seed=1,
        output="elsewhere",
        trainer={"max_steps": 10, "accumulate": 1, "threads": 2, "log_every": 7},
        logger={"wandb": "off"},
        baseline=None,
    )
    (method,) = methods_of(read("."))
    assert [run.seed for run in method.runs] == [0, 1]


def test_rows_without_training_do_not_depend_on_it_but_on_model_and_data(tmp_path):
    make_run(tmp_path / "a", accuracy(None, 0.1))
    make_run(tmp_path / "b", accuracy(None, 0.2), seed=1, objective=SUBTB)
    assert labels("a", "b") == ["base model, 0-shot"]
    make_run(tmp_path / "c", accuracy(None, 0.2), lm={"name": "gpt2", "lora": {"rank": 8}})
    assert labels("a", "b", "c") == [
        "base model, 0-shot (lm.name=embedded)",
        "base model, 0-shot (lm.name=gpt2)",
    ]


def test_trained_baselines_are_called_by_their_class(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5))
    for clip in (0.1, 0.2):
        ppo = {"_target_": "gfn_runner.baselines.ppo.PPO", "clip": clip}
        make_run(tmp_path / f"p{clip}", accuracy(0.4), baseline=ppo)
    sft = {"_target_": "gfn_runner.baselines.sft.SFT"}
    make_run(tmp_path / "s", accuracy(0.3), baseline=sft)
    assert labels(".") == ["GFlowNet", "PPO (baseline.clip=0.1)", "PPO (baseline.clip=0.2)", "SFT"]


def test_a_row_that_a_baseline_writes_under_two_settings_is_two_methods(tmp_path):
    for p in (0.9, 0.5):
        baseline = {"_target_": "gfn_runner.baselines.decoding.Decoding", "top_p": p}
        make_run(tmp_path / str(p), {"nucleus/unique/x": p}, baseline=baseline)
    assert labels(".") == [f"nucleus sampling (baseline.top_p={p})" for p in (0.5, 0.9)]


def test_the_parts_of_em_are_methods_of_their_own(tmp_path):
    make_run(tmp_path / "a", {"final/a/x": 1.0, "e_step/a/x": 0.5, "m_step/loss": 3.0})
    assert labels("a") == ["GFlowNet, E + M", "GFlowNet, E-step"]


def test_that_baselines_have_no_em_is_no_difference_between_them(tmp_path):
    em, off = {"rounds": 1, "m_lr": 0.1}, {"rounds": 0, "m_lr": 0.1}
    ours = {"final/a/x": 1.0, "e_step/a/x": 0.5, "m_step/loss": 3.0, "base_0_shot/a/x": 0.1}
    make_run(tmp_path / "a", ours | {"run/steps": 10}, em=em)
    sft = {"_target_": "gfn_runner.baselines.sft.SFT"}
    make_run(tmp_path / "s", {"final/a/x": 0.3}, baseline=sft, em=off)
    prompting = {"_target_": "gfn_runner.baselines.prompting.Prompting"}
    make_run(tmp_path / "p", {"base_0_shot/a/x": 0.1}, baseline=prompting, em=off)
    assert labels(".") == ["GFlowNet, E + M", "SFT", "GFlowNet, E-step", "base model, 0-shot"]
    # Of one's own methods it is one.
    make_run(tmp_path / "b", {"final/a/x": 1.0, "e_step/a/x": 0.5}, em={**em, "m_lr": 0.2})
    assert "GFlowNet, E + M (em.m_lr=0.2)" in labels(".")


def test_a_seed_counts_once_and_the_run_made_for_a_row_comes_first(tmp_path):
    prompting = {"_target_": "gfn_runner.baselines.prompting.Prompting"}
    make_run(tmp_path / "own", accuracy(None, 0.1), baseline=prompting)
    make_run(tmp_path / "newer", accuracy(0.5, 0.9))
    make_run(tmp_path / "older", accuracy(0.4))
    ppo = {"_target_": "gfn_runner.baselines.ppo.PPO"}
    make_run(tmp_path / "trained", accuracy(None, 0.8) | {"final/other/x": 1.0}, baseline=ppo)
    for name, when in (("own", 1), ("newer", 3), ("older", 2), ("trained", 4)):
        os.utime(tmp_path / name / "metrics.json", (when, when))
    (section,) = sections(read("."))
    assert [(m.label, cell(m, "vote_accuracy/3_operands")) for m in section.methods] == [
        ("GFlowNet", "50.0"),
        ("base model, 0-shot", "10.0"),
    ]
    assert section.notes[1:] == (
        "GFlowNet: measured more than once; used is newer for seed 0, not older. They differ in "
        "vote_accuracy.",
        "base model, 0-shot: measured more than once; used is own for seed 0, not newer, trained. They "
        "differ in vote_accuracy.",
    )


def test_the_same_numbers_twice_are_called_the_same(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, accuracy(0.5))
    (section,) = sections(read("."))
    assert section.notes[0].endswith("Their numbers are the same.")


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("vote_accuracy/x", [0.5], "50.0"),
        ("vote_accuracy/x", [0.5, 0.5], "50.0"),
        ("vote_accuracy/x", [0.4, 0.6], "50.0 ± 10.0"),
        ("vote_accuracy/x", [0.998, 1.0, 1.0], "99.933 ± 0.067"),
        ("log_reward/x", [-1.0, -2.0], "−1.50 ± 0.50"),
        ("log_reward/x", [-100.0, -300.0], "−200 ± 100"),
        ("log_reward/x", [-2.0082, -2.0082001], "−2.01"),
        ("log_reward/x", [-2.0082, -2.0083], "−2.008 ± 5e-05"),
        ("log_reward/x", [-0.5, 0.5], "0.00 ± 0.50"),
        # What differs by rounding is the same number.
        ("diversity/x", [-2e-17, 1e-17, 0.0], "0"),
        ("diversity/x", [0.3, 0.1 + 0.2], "0.3"),
    ],
)
def test_mean_and_standard_error(name, values, shown):
    assert spread(name, values) == shown
    if len(values) == 2 and "± 0.5" in shown:
        assert math.isclose(abs(values[0] - values[1]) / 2, 0.5)


def test_a_small_table_comes_out_as_it_should(tmp_path):
    make_run(tmp_path / "j/0", accuracy(0.96, 0.1) | {"final/log_reward/3_operands": -1.0})
    make_run(tmp_path / "j/1", accuracy(0.98, 0.2), seed=1, commit="b" * 40)
    make_run(tmp_path / "s/0", accuracy(0.5, 0.1), objective=SUBTB)
    main(["j", "s", "--out", "made", "--no-figures"])
    text = (tmp_path / "made/report.md").read_text(encoding="utf-8")
    a, b = "a" * 10, "b" * 10
    notes = (
        "- arithmetic: GFlowNet (objective=JointBalance); base model, 0-shot: runs of different commits "
        f"are averaged, {a}, {b}.\n"
        "- arithmetic: GFlowNet (objective=JointBalance): no log_reward/3_operands of seed 1; the others "
        "are averaged.\n"
        "- arithmetic: base model, 0-shot: measured more than once; used is "
    )
    assert notes in text
    assert (
        """\
| method | seeds | vote accuracy, 3 operands (%) | mean log R, 3 operands (nats) \
| the paper's †: vote accuracy, 3 operands (%) |
|---|---:|---:|---:|---:|
| GFlowNet (objective=JointBalance) | 2 | 97.0 ± 1.0 | −1 (1 of 2 seeds) | 95.2 |
| GFlowNet (objective=SubTB) | 1 | 50.0 |  | 95.2 |
| base model, 0-shot | 2 | 15.0 ± 5.0 |  | 10.2 |
| † GPT-J 6B, 3-shot |  |  |  | 15.8 |
| † GPT-J 6B, 5-shot |  |  |  | 20.4 |
| † GPT-J 6B, 10-shot |  |  |  | 26.5 |
| † GPT-J 6B, 20-shot |  |  |  | 35.5 |
| † GPT-J 6B, supervised |  |  |  | 72.1 |
| † GPT-J 6B, PPO |  |  |  | 30.6 |

† the paper's numbers, or its published code's: of another model, on other questions.
"""
        in text
    )
    assert (
        "| GFlowNet (objective=JointBalance) | `python -m gfn_runner -m task=some seed=0,1` "
        f"| {a}, {b} | `../j/0/config.yaml`<br>`../j/1/config.yaml` |\n"
        "| GFlowNet (objective=SubTB) | `python -m gfn_runner task=some seed=0` "
        f"| {a} | `../s/0/config.yaml` |\n"
    ) in text


def test_columns_can_be_chosen_and_unknown_ones_are_refused(tmp_path):
    make_run(tmp_path / "a", {"final/kl/x": 0.5, "final/vote_accuracy/x": 0.5, "train/kl2": 1.0})
    (section,) = sections(read("a"), ["kl"])
    assert section.columns == ("kl/x",) and not section.published
    with pytest.raises(UserError, match=r"--metrics: no run has kl2, tv\n    allowed: kl, vote_"):
        sections(read("a"), ["kl2", "kl", "tv"])


def test_tasks_have_sections_and_the_page_says_so(tmp_path, capsys):
    make_run(tmp_path / "a", accuracy(0.5))
    make_run(tmp_path / "n", {"final/kl/numbers": 0.25}, task=NUMBERS)
    failed = make_run(tmp_path / "f")
    (failed / "run.log").write_text("Traceback\nERROR it is over\n")
    main(["a", "n", "f", "--no-figures"])
    text, said = (tmp_path / "report/report.md").read_text(), capsys.readouterr().out
    for note in (
        "The runs are of 2 tasks (arithmetic, random_number): a section each",
        "f is failed: no metrics.json, no optimizer step of 10 reached, and run.log holds an error.",
        "f, run.log: ERROR it is over",
    ):
        assert note in text and note in said
    assert "# Report on 2 finished runs" in text
    assert re.search(
        r"## random_number\n\n\| method \| seeds \| KL\(.*\), numbers \(nats\) \|\n.*\n.*0\.25",
        text,
    )


def test_the_old_numbers_of_a_resumed_run_are_not_averaged(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5))
    make_run(tmp_path / "b", accuracy(0.9), seed=1, em={"rounds": 2})
    make_run(tmp_path / "c", accuracy(0.9), seed=1, trainer={"max_steps": 20, "accumulate": 1})
    (section,) = sections(read("."))
    assert [cell(m, "vote_accuracy/3_operands") for m in section.methods] == ["50.0"]


class IntegerArithmetic(gfn_runner.tasks.arithmetic.IntegerArithmetic):
    """Another class of the same name."""


def test_two_classes_of_one_name_keep_their_sections_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(gfn_runner.tasks.translation, "Own", IntegerArithmetic, raising=False)
    own = "gfn_runner.tasks.translation.Own"
    make_run(tmp_path / "a", accuracy(0.5))
    make_run(tmp_path / "b", accuracy(0.5), task=own)
    assert [section.name for section in sections(read("."))] == [ARITHMETIC, own]


def test_a_task_that_is_no_more_leaves_its_numbers(tmp_path):
    make_run(tmp_path / "a", {"final/phi_spread/x": 0.5}, task="gfn_runner.tasks.gone.Gone")
    (section,) = sections(read("a"))
    assert section.name == "Gone" and section.columns == ("phi_spread/x",)
    assert "cannot be built" in section.notes[0]


def test_a_method_without_any_of_the_metrics_is_named(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5, **{"base_0_shot/other/x": 1.0}))
    (section,) = sections(read("a"))
    assert [m.label for m in section.methods] == ["GFlowNet"]
    assert section.notes == (
        "base model, 0-shot: has none of the table's metrics, so it has no row.",
    )


def test_commands_are_quoted_and_told_apart(tmp_path):
    for seed, words in enumerate(
        (["task=some", "a=[1,2]"], ["task=some", "a=[1,2]"], ["task=some"])
    ):
        folder = make_run(tmp_path / str(seed), accuracy(0.5), seed=seed)
        (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    (method,) = methods_of(read("."))
    assert commands(method) == [
        "python -m gfn_runner -m task=some 'a=[1,2]' seed=0,1",
        "python -m gfn_runner task=some seed=2",
    ]
    for seed in "02":
        (tmp_path / seed / "overrides.yaml").unlink()
    (method,) = methods_of(read("."))
    assert commands(method)[0] == "unknown: no overrides.yaml of seed 0, 2"


def test_rows_that_have_no_name_yet_stand_in_the_order_of_their_numbers(tmp_path):
    make_run(tmp_path / "a", {f"best_of_{n}/a/x": 1.0 for n in (16, 4, 64)} | accuracy(None, 0.1))
    assert labels("a") == ["base model, 0-shot", "best of 4", "best of 16", "best of 64"]


# -- samples and figures ---------------------------------------------------------------------------


def record(singles, log_reward, log_pf, condition="some", **others):
    return {
        "group": "3_operands", "condition": condition, "prompt": f"Question: {condition}",
        "answer": None, "votes": [], "singles": singles, "log_reward": log_reward, "log_pf": log_pf,
    } | others  # fmt: skip


def only_section(*folders):
    (section,) = sections(read(*folders))
    return section


def test_methods_stand_side_by_side_for_the_same_conditions(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5, 0.1))
    # A condition of one method only comes after those that both have.
    own = [
        record(["z"], [-9.0], [-9.0], "alone"),
        record([" 1", " 2", " 2"], [-1.0, -2.0, -2.0], [0.0] * 3),
    ]
    write_lines(folder / "samples.jsonl", own)
    write_lines(folder / "samples_base_0_shot.jsonl", [record(["x", "x"], [], [], answer=-11)])
    table = sample_table(only_section("a"), conditions=1)
    assert table.rows == [
        ("Question: some", "GFlowNet", "2", "67 %", "−2.00"),
        ("", "base model, 0-shot", "x", "100 %", ""),
    ]
    (folder / "samples.jsonl").unlink()
    write_lines(folder / "samples_base_0_shot.jsonl", [record([""], [], [])])
    assert sample_table(only_section("a")) == "no method left single samples"


def test_a_sample_is_judged_by_the_task_where_it_can(tmp_path):
    from gfn_runner.tasks.arithmetic import IntegerArithmetic

    condition = IntegerArithmetic().load(0).evaluation[0]
    steps = " " + condition.facts["expression"].steps()
    folder = make_run(tmp_path / "a", accuracy(0.5, 0.1))
    for name, text in (("samples", steps), ("samples_base_0_shot", " 1 + 1 = 3")):
        drawn = record([text], [-1.0], [-1.0], condition.key, group=condition.group)
        write_lines(folder / f"{name}.jsonl", [drawn])
    table = sample_table(only_section("a"))
    assert [row[-1] for row in table.rows] == ["single accuracy: yes", "single accuracy: no"]


def test_broken_samples_are_named(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5))
    (folder / "samples.jsonl").write_text('{"group": \n')
    with pytest.raises(SystemExit) as caught:
        main(["a"])
    assert caught.value.code == 2 and not (tmp_path / "report").exists()


LIKELY = {
    "diversity/news": 0.5, "log_likelihood/news": -9.0, "log_likelihood_max/news": -7.0,
}  # fmt: skip


def test_likelihood_has_a_mark_a_method_with_errors_over_seeds(tmp_path):
    for seed, shift in enumerate((-0.1, 0.1)):
        metrics = {f"final/{name}": value + shift for name, value in LIKELY.items()}
        metrics["final/diversity/news"] = 0.5 + shift / 10
        metrics |= {f"base_0_shot/{name}": value for name, value in LIKELY.items()}
        make_run(tmp_path / str(seed), metrics, seed=seed, task=CONTINUATION)
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
    make_run(tmp_path / "a", metrics, task=CONTINUATION)
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
    folder = make_run(
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
    folder = make_run(tmp_path / "a", accuracy(0.5, 0.1))
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
    ppo = {"_target_": "gfn_runner.baselines.methods.PPO"}
    folder = make_run(tmp_path / "p", accuracy(0.5), baseline=ppo)
    write_lines(folder / "samples.jsonl", [record(["a", "a"], [-1.0, -1.0], [0.0, 0.0])])
    (axes,) = calibration(only_section("p")).axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([-2.0])  # log R / T, alone
    policy = make_run(tmp_path / "g", accuracy(0.9))
    log_q = -math.log(4)
    write_lines(policy / "samples.jsonl", [record(["a", "b"], [-1.0, -1.0], [log_q, log_q])])
    exact, collapsed = calibration(only_section(".")).axes
    assert list(exact.lines[0].get_ydata()) == pytest.approx([-2.0, -2.0])
    assert list(collapsed.lines[0].get_ydata()) == pytest.approx([-2.0 + math.log(4)])
    # Another posterior of the same name says nothing of this one.
    make_run(tmp_path / "o", accuracy(0.5), lm={"name": "gpt2", "lora": {"rank": 4}})
    high = record(["a", "b"], [9.0, 9.0], [log_q, log_q])
    write_lines(tmp_path / "o/samples.jsonl", [high])
    first = calibration(only_section(".")).axes[0]
    assert list(first.lines[0].get_ydata()) == pytest.approx([-2.0, -2.0])


def test_an_exact_log_z_goes_before_every_estimate(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5))
    listed = record(["a", "b"], [-1.0, -1.0], [-9.0, -9.0], support_log_reward=[-1.0, -1.0])
    write_lines(folder / "samples.jsonl", [listed])
    (axes,) = calibration(only_section("a")).axes
    exact = -2.0 + math.log(2)
    assert list(axes.lines[0].get_ydata()) == pytest.approx([-9 + exact, -9 + exact])


def test_evidence_is_set_against_the_sum_over_all_strings(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5))
    drawn = record(["a", "b"], [-1.0, -1.0], [-4.0, -5.0], support_log_reward=[-1.0, -1.0])
    write_lines(folder / "samples.jsonl", [drawn])
    figure = evidence(only_section("a"))
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["GFlowNet"]
    assert axes.get_xlim() == axes.get_ylim()
    exact, mean, bound = -2.0 + math.log(2), 2.5, math.log((math.e**2 + math.e**3) / 2)
    found = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[:2]]
    assert found == [pytest.approx((exact, mean)), pytest.approx((exact, bound))]


def logged(folder, values, **clocks):
    """Training records and evaluations on the way, as ``metrics.jsonl`` has them; the last is final."""
    lines = []
    for number, (step, value) in enumerate(values.items(), 1):
        kind = "final" if number == len(values) else "eval"
        lines.append({"step": step, "time": 1.0, "train/loss": 1.0} | clocks)
        lines.append({"step": step, "time": 2.0, f"{kind}/vote_accuracy/x": value})
    write_lines(folder / "metrics.jsonl", lines)


def curve(axes, number):
    line = axes.containers[number].lines[0]
    return list(line.get_xdata()), list(line.get_ydata())


def test_the_headline_stands_over_the_strings_trained_on(tmp_path):
    for seed, shift in enumerate((0.0, 0.2)):
        folder = make_run(tmp_path / str(seed), {"final/vote_accuracy/x": 0.6 + shift}, seed=seed)
        logged(folder, {5: 0.2 + shift, 10: 0.6 + shift})
    (axes,) = compute(only_section(".")).axes
    assert curve(axes, 0) == ([40.0, 80.0], pytest.approx([0.3, 0.7]))
    assert axes.get_xlabel() == "strings trained on"


@pytest.mark.parametrize("devices", [("cpu", "cpu"), ("cpu", "some GPU")])
def test_it_stands_over_time_beside_a_trained_baseline(devices, tmp_path):
    ppo = {"_target_": "gfn_runner.baselines.ppo.PPO"}
    for name, baseline, device in zip("ap", (None, ppo), devices, strict=True):
        metrics = {"final/vote_accuracy/x": 0.6, "train/cpu_seconds": 6.0}
        folder = make_run(tmp_path / name, metrics, baseline=baseline)
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
    callbacks = {"evaluation": {"votes": 10}}
    make_run(tmp_path / "a", metrics, callbacks=callbacks)
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


def test_policies_stand_beside_as_many_draws_and_the_table_tells_where_they_cross(tmp_path):
    metrics = {
        "final/vote_accuracy/x": 0.9, "final/single_accuracy/x": 0.55, "final/single_accuracy/y": 0.25,
        "resampled_1/single_accuracy/x": 0.25, "resampled_4/single_accuracy/x": 0.5,
        "resampled_16/single_accuracy/x": 0.75, "best_of_1/single_accuracy/x": 0.5,
        "best_of_4/single_accuracy/x": 0.75, "best_of_4/single_accuracy/y": 0.25,
    }  # fmt: skip
    callbacks = {"evaluation": {"votes": 10}}
    make_run(tmp_path / "a", metrics, callbacks=callbacks)
    # The second seed's policy is above 16 resampled strings, the mean of the two is not.
    second = metrics | {"final/single_accuracy/x": 0.85}
    make_run(tmp_path / "b", second, seed=1, callbacks=callbacks)
    table = equal_compute(only_section("."))
    assert table.header == (
        "single accuracy (%)", "set", "strings a question", "policy",
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


def test_where_there_is_nothing_to_compare_at_equal_compute_it_is_said(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5))
    assert equal_compute(only_section("a")) == "no rows of several draws a question"
    lower = {"final/kl/x": 0.1, "resampled_4/kl/x": 0.2}
    make_run(tmp_path / "b", lower, task=NUMBERS)
    assert equal_compute(only_section("b")) == "kl, where smaller is better, is not compared"
    make_run(tmp_path / "c", {"resampled_4/single_accuracy/x": 0.5})
    assert equal_compute(only_section("c")) == "no trained policy was measured on the same sets"


def test_a_figure_without_data_is_left_out_and_says_why(tmp_path):
    make_run(tmp_path / "a", accuracy(0.5))
    written, missing = draw(only_section("a"), tmp_path)
    assert not written and not list(tmp_path.glob("*.png"))
    names = ["likelihood diversity", "histogram", "calibration", "evidence", "compute"]
    assert [text.partition(":")[0] for text in missing] == names


# -- pages and the command -------------------------------------------------------------------------


def whole_run(tmp_path):
    metrics = {"final/vote_accuracy/x": 0.6} | {f"final/{n}": v for n, v in LIKELY.items()}
    folder = make_run(tmp_path / "a", metrics)
    logged(folder, {5: 0.2, 10: 0.6})
    hostile = "<script src='http://example.com/x.js'></script> | `x` *y* ![z](http://example.com)"
    drawn = record([hostile, "b"], [-1.0, -2.0], [-1.0, -2.0])
    write_lines(folder / "samples.jsonl", [drawn])
    return folder


def test_pages_and_pictures_lie_side_by_side(tmp_path, capsys):
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
    assert str(made.relative_to(tmp_path) / "report.md") in capsys.readouterr().out


def test_the_html_needs_nothing_but_itself(tmp_path):
    whole_run(tmp_path)
    main(["a"])
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    tags = re.findall(r"<[a-z][^>]*>", page)
    assert not [tag for tag in tags if "http:" in tag or "https:" in tag or "href" in tag]
    sources = [re.search(r'src="([^"]*)"', tag)[1] for tag in tags if "src" in tag]
    assert len(sources) == 3 and all(s.startswith("data:image/png;base64,iVBOR") for s in sources)
    assert "<script" not in page and "&lt;script src=" in page and "@import" not in page
    assert page.count('<div class="wide"><table') == 4


def test_without_figures_none_is_drawn(tmp_path):
    whole_run(tmp_path)
    main(["a", "--no-figures"])
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "report.html",
        "report.md",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "none: there is no such folder"),
        (["a", "--metrics", "none"], "--metrics: no run has none"),
        (["a", "--out", "a/config.yaml"], "--out: a/config.yaml is a file"),
        (["a", "--out", "a/config.yaml/x"], "config.yaml"),
    ],
)
def test_a_report_that_fails_leaves_the_old_one(tmp_path, capsys, arguments, said):
    make_run(tmp_path / "a", accuracy(0.5))
    main(["a", "--no-figures"])
    before = (tmp_path / "report/report.md").read_text()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and "no report was written" in err and said in err
    assert (tmp_path / "report/report.md").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "report"]


def test_a_figure_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    whole_run(tmp_path)
    main(["a", "--no-figures"])
    (tmp_path / "report/report.md").write_text("old")

    def broken(*_):
        raise RuntimeError("no figure")

    monkeypatch.setattr("gfn_runner.report.across.draw", broken)
    with pytest.raises(RuntimeError, match="no figure"):
        main(["a"])
    assert (tmp_path / "report/report.md").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "report"]


def test_blocks_of_a_page(tmp_path):
    (tmp_path / "p.png").write_bytes(b"png")
    blocks = [
        Heading("A <b>", 1), Text("x_y _z_ *w* `v`"), Items(["one", "two"]), Code(["a | b"]),
        Table(("n", "v|w"), [("r", Code(["c|d"]))], numeric=False), Table(("n", "v"), [("r", "1")]),
        Picture(tmp_path / "p.png", "what"),
    ]  # fmt: skip
    assert markdown(blocks) == (
        "# A \\<b>\n\nx_y \\_z\\_ \\*w\\* \\`v\\`\n\n- one\n- two\n\n```\na | b\n```\n\n"
        "| n | v\\|w |\n|---|---|\n| r | `c\\|d` |\n\n| n | v |\n|---|---:|\n| r | 1 |\n\n"
        "![what](p.png)\n\nwhat\n"
    )
    page = html_page(blocks)
    for part in (
        "<title>A &lt;b&gt;</title>", "<h1>A &lt;b&gt;</h1>", "<p>x_y _z_ *w* `v`</p>",
        "<ul><li>one</li><li>two</li></ul>", "<pre><code>a | b</code></pre>",
        "<td><code>c|d</code></td>", '<table class="numeric">', 'src="data:image/png;base64,cG5n"',
    ):  # fmt: skip
        assert part in page


def test_published_rows_keep_their_places(tmp_path):
    make_run(tmp_path / "a", {"final/vote_accuracy/5_operands": 0.5, "final/vote_accuracy/x": 0.5})
    table = results(only_section("a"))
    assert table.header == (
        "method",
        "seeds",
        "vote accuracy, 5 operands (%)",
        "vote accuracy, x (%)",
        "the paper's †: vote accuracy, 5 operands (%)",
    )
    assert table.rows[0] == ("GFlowNet", "1", "50.0", "50.0", "40.7")
    assert table.rows[-1] == ("† GPT-J 6B, PPO", "", "", "", "5.6")


def test_each_method_has_the_papers_number_under_its_own_settings(tmp_path):
    """Few-shot of 10 and of 50 examples is two rows of the paper's table."""
    for n in (10, 50):
        task = {"_target_": "gfn_runner.tasks.subjectivity.Subjectivity", "data": {"n_train": n}}
        folder = make_run(tmp_path / str(n), {"final/vote_accuracy/test": n / 100})
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"task": task}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    table = results(only_section("."))
    assert [(row[2], row[-1]) for row in table.rows[:2]] == [("10.0", "75.2"), ("50.0", "89.9")]


def test_runs_that_are_in_no_mean_have_a_row_of_their_own(tmp_path):
    make_run(tmp_path / "a", {"final/vote_accuracy/x": 0.5, "final/single_accuracy/x": 0.5})
    failed = make_run(tmp_path / "f", seed=1)
    (failed / "run.log").write_text("ERROR b: non-finite loss\n")
    ppo = {"_target_": "gfn_runner.baselines.methods.PPO"}
    make_run(tmp_path / "u", seed=2, baseline=ppo)
    make_run(tmp_path / "n", {"final/kl/numbers": 0.25}, task=NUMBERS)
    section = next(s for s in sections(read(".")) if s.name == "arithmetic")
    assert results(section).rows[-2:] == [
        ("GFlowNet, seed 1", "", "failed", ""),
        ("PPO, seed 2", "", "unfinished", ""),
    ]


def test_fewer_conditions_are_told(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5, 0.1))
    many = [record(["b"], [-1.0], [-1.0], f"{n}") for n in range(3)]
    write_lines(folder / "samples.jsonl", many)
    write_lines(folder / "samples_base_0_shot.jsonl", many[:2])
    (note,) = [note for note in only_section("a").notes if "same conditions" in note]
    assert "3 of a set: GFlowNet; 2 of a set: base model, 0-shot." in note
    write_lines(folder / "samples_base_0_shot.jsonl", many)
    assert not [note for note in only_section("a").notes if "same conditions" in note]


def test_of_rows_that_choose_only_the_largest_number_is_shown(tmp_path):
    rows = [f"{kind}_{n}" for kind in ("best_of", "resampled") for n in (4, 16)]
    folder = make_run(tmp_path / "a", {f"{row}/single_accuracy/x": 0.5 for row in rows})
    for row in rows:
        write_lines(folder / f"samples_{row}.jsonl", [record(["b"], [], [])])
    table = sample_table(only_section("a"))
    assert [row[1] for row in table.rows] == ["best of 16", "resampled from 16"]


def test_samples_that_the_paper_printed_stand_below_ours(tmp_path):
    folder = make_run(tmp_path / "a", accuracy(0.5))
    write_lines(folder / "samples.jsonl", [record(["b"], [-1.0], [-1.0])])
    main(["a", "--no-figures"])
    text = (tmp_path / "report/report.md").read_text()
    assert "| 1 - 9 + 8 | PPO | 1 - 9 - 8 | −13.17 |" in text
    assert text.index("### Samples for the same conditions") < text.index("† The paper's own")


def test_seeds_that_learn_from_the_samples_of_their_own_are_one_method(tmp_path):
    sft = {"_target_": "gfn_runner.baselines.methods.SFT"}
    for seed in (0, 1, 10):
        teacher = {**sft, "samples_of": f"outputs/1/gflownet/seed{seed}"}
        make_run(tmp_path / f"s{seed}", accuracy(0.5), seed=seed, baseline=teacher)
    (method,) = methods_of(read("."))
    assert [run.seed for run in method.runs] == [0, 1, 10]
    other = {**sft, "samples_of": "outputs/1/other/seed0"}
    make_run(tmp_path / "o", accuracy(0.5), baseline=other)
    # With a teacher that is not of the run's own seed the two are told apart.
    fixed = {**sft, "samples_of": "outputs/1/gflownet/seed0"}
    make_run(tmp_path / "f", accuracy(0.5), seed=1, baseline=fixed)
    assert len(methods_of(read("."))) == 3


@pytest.mark.parametrize(
    ("baseline", "number"),
    [
        (None, "95.2 / 75.4"),
        ({"_target_": "gfn_runner.baselines.methods.PPO"}, "30.6 / 13.7"),
        ({"_target_": "gfn_runner.baselines.methods.SFT", "samples_of": None}, "72.1 / 19.6"),
        # No method of the paper: its number stands beside none.
        ({"_target_": "gfn_runner.baselines.methods.SFT", "samples_of": "run"}, None),
        ({"_target_": "gfn_runner.baselines.methods.GRPO"}, None),
    ],
)
def test_the_papers_number_stands_beside_the_method_that_it_is_of(baseline, number, tmp_path):
    metrics = {f"final/vote_accuracy/{n}_operands": 0.5 for n in (3, 4)}
    make_run(tmp_path / "a", metrics, **({"baseline": baseline} if baseline else {}))
    table = results(only_section("a"))
    if number is None:
        assert len(table.header) == 4 and table.rows[-1][2:] == ("95.2", "75.4")
    else:
        assert table.header[-1] == "the paper's †: vote accuracy, 3 operands / 4 operands (%)"
        assert table.rows[0][-1] == number
