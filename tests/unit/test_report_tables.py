"""Reports across runs: tables, notes, samples, pages, out of made-up folders."""

from __future__ import annotations

import re

import pytest
import yaml

from gfn_runner.errors import UserError
from gfn_runner.report.__main__ import main
from gfn_runner.report.methods import methods_of
from gfn_runner.report.summary import cell, commands, sections, spread

from ..report_folders import NUMBERS, SFT, SUBTB, accuracy, leave_run, read

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


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


def test_a_small_table_comes_out_as_it_should(tmp_path):
    leave_run(tmp_path / "j/0", accuracy(0.96, 0.1) | {"final/log_reward/3_operands": -1.0})
    leave_run(tmp_path / "j/1", accuracy(0.98, 0.2), seed=1, commit="b" * 40)
    leave_run(tmp_path / "s/0", accuracy(0.5, 0.1), objective=SUBTB)
    main(["j", "s", "--out", "made", "--no-figures"])
    text = (tmp_path / "made/report.md").read_text(encoding="utf-8")
    a, b, joint = "a" * 10, "b" * 10, "GFlowNet (objective=JointBalance)"
    for part in (
        f"- arithmetic: {joint}; base model, 0-shot: runs of different commits are averaged, {a}, {b}.\n"
        f"- arithmetic: {joint}: no log_reward/3_operands for seed 1; the others are averaged.\n"
        "- arithmetic: base model, 0-shot: measured more than once; not used: ",
        f"""\
| method | seeds | vote accuracy, 3 operands (%) | mean log R, 3 operands (nats) |
|---|---:|---:|---:|
| {joint} | 2 | 97.0 ± 1.0 | −1 (1 of 2 seeds) |
| GFlowNet (objective=SubTB) | 1 | 50.0 |  |
| base model, 0-shot | 2 | 15.0 ± 5.0 |  |
| † GPT-J 6B, 0-shot |  | 10.2 |  |
""",
        """\
| † GPT-J 6B, GFlowNet |  | 95.2 |  |

† the paper's numbers, or its published code's: of another model, on other questions.
""",
        f"| {joint} | `python -m gfn_runner -m task=some seed=0,1` | {a}, {b} "
        "| `../j/0/config.yaml`<br>`../j/1/config.yaml` |\n"
        "| GFlowNet (objective=SubTB) | `python -m gfn_runner task=some seed=0` "
        f"| {a} | `../s/0/config.yaml` |\n",
    ):
        assert part in text


def test_columns_can_be_chosen_and_unknown_ones_are_refused(tmp_path):
    leave_run(tmp_path / "a", {"final/kl/x": 0.5, "final/vote_accuracy/x": 0.5, "train/kl2": 1.0})
    (section,) = sections(read("a"), ["kl"])
    assert section.columns == ("kl/x",) and not section.published
    with pytest.raises(UserError, match=r"--metrics: no run has kl2, tv\n    allowed: kl, vote_"):
        sections(read("a"), ["kl2", "kl", "tv"])


def test_tasks_have_sections_and_the_page_says_so(tmp_path, capsys):
    leave_run(tmp_path / "a", accuracy(0.5))
    leave_run(tmp_path / "n", {"final/kl/numbers": 0.25}, task=NUMBERS)
    failed = leave_run(tmp_path / "f")
    (failed / "run.log").write_text("Traceback\nERROR it is over\n")
    main(["a", "n", "f", "--no-figures"])
    text, said = (tmp_path / "report/report.md").read_text(), capsys.readouterr().out
    for note in (
        "The runs cover 2 tasks (arithmetic, random_number), one section each",
        "f: failed at optimizer step 0 of 10: ERROR it is over.",
        "f, run.log: ERROR it is over",
    ):
        assert note in text and note in said
    assert "# Report on 2 finished runs" in text
    assert re.search(
        r"## random_number\n\n\| method \| seeds \| KL\(.*\), numbers \(nats\) \|\n.*\n.*0\.25",
        text,
    )


def test_the_old_numbers_of_a_resumed_run_are_not_averaged(tmp_path):
    leave_run(tmp_path / "a", accuracy(0.5))
    leave_run(tmp_path / "b", accuracy(0.9), seed=1, em={"rounds": 2})
    leave_run(tmp_path / "c", accuracy(0.9), seed=1, trainer={"max_steps": 20, "accumulate": 1})
    (section,) = sections(read("."))
    assert [cell(m, "vote_accuracy/3_operands") for m in section.methods] == ["50.0"]


def test_a_task_that_is_no_more_leaves_its_numbers(tmp_path):
    leave_run(tmp_path / "a", {"final/phi_spread/x": 0.5}, task="gfn_runner.tasks.gone.Gone")
    (section,) = sections(read("a"))
    assert section.name == "Gone" and section.columns == ("phi_spread/x",)
    assert "cannot be built" in section.notes[0]


def test_commands_are_quoted_and_told_apart(tmp_path):
    for seed, words in enumerate(
        (["task=some", "a=[1,2]"], ["task=some", "a=[1,2]"], ["task=some"])
    ):
        folder = leave_run(tmp_path / str(seed), accuracy(0.5), seed=seed)
        (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    (method,) = methods_of(read("."))
    assert commands(method) == [
        "python -m gfn_runner -m task=some 'a=[1,2]' seed=0,1",
        "python -m gfn_runner task=some seed=2",
    ]
    for seed in "02":
        (tmp_path / seed / "overrides.yaml").unlink()
    (method,) = methods_of(read("."))
    assert commands(method)[0] == "unknown: no overrides.yaml for seed 0, 2"


def test_seeds_that_learn_from_the_samples_of_their_own_are_one_method(tmp_path):
    def learn(name: str, seed: int, teacher: str) -> None:
        baseline = SFT | {"samples_of": f"outputs/1/{teacher}"}
        leave_run(tmp_path / name, accuracy(0.5), seed=seed, baseline=baseline)

    for seed in (0, 1, 10):
        learn(f"s{seed}", seed, f"gflownet/seed{seed}")
    (method,) = methods_of(read("."))
    assert [run.seed for run in method.runs] == [0, 1, 10]
    learn("o", 0, "other/seed0")
    # With a teacher that is not of the run's own seed the two are told apart.
    learn("f", 1, "gflownet/seed0")
    assert len(methods_of(read("."))) == 3
