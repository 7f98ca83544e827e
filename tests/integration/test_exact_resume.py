"""A run that is killed anywhere and resumed leaves what an uninterrupted one does, bit for bit.

What a killed process leaves is a copy of its run folder at that moment; real signals come at the end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gfn_runner.algorithms import em
from gfn_runner.algorithms.em import read_record
from gfn_runner.callbacks import evaluation
from tests import runs
from tests.copied_runs import MOMENTS, Moment, assert_same, copied
from tests.runs import CONF, made_once, newest_state, start
from tests.same_runs import ARITHMETIC, CASES, COMMON, EM, FOUR, assert_same_run, logged, state_of
from tests.slow import mostly_slow

# The others are slow: one of each kind of state is enough for a change of one's own.
KEPT = (
    "draws of the base model beside fresh strings",
    "learned log Z, accumulated",
    "grpo",
)
# Each leaves a checkpoint (of step 2 or 4) and work to be done: the checkpoint of a step comes before its
# evaluation. The cases take turns.
TIMES: list[Moment] = [
    *(("before the step is logged", step) for step in (3, 4)),
    *(("after the step", step) for step in (3, 5)),
    *(("in the evaluation", step) for step in (4, 2)),
    *(("after the evaluation", step) for step in (2, 4)),
]
KILLS = {case: [TIMES[number % len(TIMES)]] for number, case in enumerate(CASES)}
# Updates 1 to 4 are on one rollout, the checkpoint is of update 2.
KILLS["ppo"] = KILLS["grpo"] = [("after the step", 3), ("after the evaluation", 2)]


def run(folder: Path, *lines: str) -> Path:
    return runs.run(folder, *lines, base=COMMON)


def run_copied(folder: Path, moments: list[Moment], *lines: str) -> dict[Moment, Path]:
    """A run in ``folder / "straight"``, and its copies by moment."""
    copies = {moment: folder / " ".join(map(str, moment)) for moment in moments}
    with copied(folder / "straight", copies):
        run(folder / "straight", *lines)
    return copies


def test_every_task_and_every_baseline_that_trains_is_resumed_here():
    choices = {line for lines in (*CASES.values(), EM, FOUR) for line in lines}
    assert choices >= {f"task={path.stem}" for path in CONF.glob("task/*.yaml")}
    baselines = [path for path in CONF.glob("baseline/*.yaml") if "algorithms" in path.read_text()]
    assert len(baselines) == 3 and choices >= {f"baseline={path.stem}" for path in baselines}


@pytest.mark.parametrize("case", mostly_slow(CASES, KEPT))
def test_a_run_that_is_killed_and_resumed_is_the_same_run(case, tmp_path):
    for copy in run_copied(tmp_path, KILLS[case], *CASES[case]).values():
        assert not (copy / "metrics.json").exists()
        if case in ("ppo", "grpo"):
            newest = newest_state(copy)
            assert newest["global_step"] == 2 and newest["rollouts"][0].keys() == {0}
        run(copy, *CASES[case], "resume=auto")
        assert_same_run(copy, tmp_path / "straight")


@pytest.fixture(scope="session")
def four(tmp_path_factory) -> Path:
    """Four steps, and copies at every moment of steps 2 and 4."""
    return made_once(tmp_path_factory, "four", lambda made: run_copied(made, ENDS, *FOUR))


ENDS = [(moment, step) for moment in MOMENTS for step in (2, 4)]


@pytest.mark.parametrize(
    "end",
    mostly_slow(ENDS, [ENDS[0], *(e for e in ENDS if e[1] == 4)]),
    ids=lambda e: " ".join(map(str, e)),
)
def test_every_moment_of_a_step_can_be_the_last(end, four, tmp_path):
    """Step 4 is the last one: after it there is nothing to train, but perhaps to evaluate."""
    folder = shutil.copytree(four / " ".join(map(str, end)), tmp_path / "run")
    run(folder, *FOUR, "resume=auto")
    assert_same_run(folder, four / "straight")


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_while_an_evaluation_is_measured_is_obeyed(step, four, tmp_path, monkeypatch):
    """After step 4 no batch comes at whose end it would be looked at."""
    folder, measure, seen = tmp_path / "stopped", evaluation.measure, []

    def measured(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) == step // 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "measure", measured)
        with pytest.raises(SystemExit) as stop:
            run(folder, *FOUR)
    assert stop.value.code == 128 + signal.SIGTERM and not (folder / "metrics.json").exists()
    run(folder, *FOUR, "resume=auto")
    assert_same_run(folder, four / "straight")


# The optimizer's steps of two rounds: 3 of the E-step and 2 of the M-step each.
IN_M_STEP, BEFORE_ADAPTER, AFTER_ADAPTER = (
    "in M-step",
    "adapter is not in place",
    "adapter is in place",
)
AROUND_M_STEPS = [
    (IN_M_STEP, 1),
    (BEFORE_ADAPTER, 2),
    (AFTER_ADAPTER, 1),
    (AFTER_ADAPTER, 2),
    ("before the step is logged", 5),
]


def run_em(folder: Path) -> None:
    """Two rounds, and copies around their M-steps."""
    straight, updates, rename = folder / "straight", [], Path.rename

    def copy(moment: str, number: int) -> None:
        if (moment, number) in AROUND_M_STEPS:
            shutil.copytree(straight, folder / f"{moment} {number}")

    def updated(*_: Any) -> None:
        updates.append(0)
        if len(updates) == 5:
            copy(IN_M_STEP, 1)

    def renamed(path: Path, target: Any) -> Path:
        number = len(updates) // 5
        lands = Path(target) == straight / em.FOLDER
        if lands:
            copy(BEFORE_ADAPTER, number)
        moved = rename(path, target)
        if lands:
            copy(AFTER_ADAPTER, number)
        return moved

    handle = register_optimizer_step_pre_hook(updated)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "rename", renamed)
            run_copied(folder, AROUND_M_STEPS[-1:], *EM)
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def of_em(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "of_em", run_em)


@pytest.mark.parametrize(
    "end",
    mostly_slow(AROUND_M_STEPS, [(IN_M_STEP, 1), (BEFORE_ADAPTER, 2), (AFTER_ADAPTER, 1)]),
    ids=lambda end: " ".join(map(str, end)),
)
def test_a_run_of_em_that_is_killed_and_resumed_is_the_same_run(end, of_em, tmp_path):
    moment, number = end
    folder = shutil.copytree(of_em / f"{moment} {number}", tmp_path / "run")
    made = {IN_M_STEP: 0, BEFORE_ADAPTER: number - 1, AFTER_ADAPTER: number}
    assert read_record(folder).m_steps == made.get(moment, 1)
    run(folder, *EM, "resume=auto")
    assert_same_run(folder, of_em / "straight")
    assert [n for line in logged(folder) for n in line].count("m_step/loss_after") == 2
    assert not (folder / "answer_adapter.part").exists()


EXPONENTIAL = [
    "~scheduler.decay",
    "~scheduler.warmup_steps",
    "scheduler._target_=torch.optim.lr_scheduler.ExponentialLR",
    "+scheduler.gamma=0.5",
]


@pytest.mark.parametrize(
    ("scheduler", "factor"),
    [
        pytest.param(
            ["scheduler.decay=true", "scheduler.warmup_steps=3"], 1.0, marks=pytest.mark.slow
        ),
        (EXPONENTIAL, 0.25),
    ],
    ids=["linear", "exponential"],
)
def test_a_changed_learning_rate_counts_from_the_first_step_on(scheduler, factor, tmp_path):
    """A checkpoint brings back the rates that its run had; the config has the say."""
    lines = ["task=random_number", "objective=tb", *scheduler]
    changed = ["optimizer.lr=1e-4", "optimizer.weight_decay=0.1", "optimizer.betas=[0.8,0.9]"]
    changed += ["objective.log_z_lr=0.01", "trainer.max_steps=4"]
    straight = run(tmp_path / "straight", *lines, *changed)
    folder = run(tmp_path / "changed", *lines, "trainer.max_steps=2")
    run(folder, *lines, *changed, f"resume={folder}")
    found, expected = state_of(folder), state_of(straight)
    assert_same(found["lr_schedulers"], expected["lr_schedulers"])
    groups = [state["optimizer_states"][0]["param_groups"] for state in (found, expected)]
    assert_same(*groups)
    rates = [
        [r["train/lr"] for r in logged(f) if r["step"] > 2 and "train/lr" in r]
        for f in (folder, straight)
    ]
    assert rates[0] == rates[1] and rates[0][0] == 1e-4 * factor and len(rates[0]) == 2


def signalled(folder: Path, number: int, wanted: int, *lines: str) -> int:
    """The program itself, sent a signal after new lines of ``metrics.jsonl``. Returns its exit status."""
    begun = time.time()  # lines after the checkpoint are cut before the first new one is written
    program = start(*COMMON, *lines, f"hydra.run.dir={folder}", stdout=subprocess.DEVNULL)
    while program.poll() is None and wanted_lines(folder / "metrics.jsonl", since=begun) < wanted:
        time.sleep(0.01)
    program.send_signal(number)
    return program.wait()


def wanted_lines(path: Path, since: float) -> int:
    """How many lines of a file were written since then."""
    text = path.read_text() if path.is_file() else ""
    whole = [line for line in text.split("\n")[:-1] if line]
    return sum(json.loads(line)["time"] >= since for line in whole)


@pytest.mark.slow
def test_the_program_is_killed_and_stopped_at_random_times(tmp_path):
    """From outside: SIGKILL, then SIGTERM, then left alone."""
    lines = [
        *ARITHMETIC,
        "trainer.max_steps=24",
        "callbacks.evaluation.every_n_steps=12",
        "resume=auto",
    ]
    straight, folder = run(tmp_path / "straight", *lines[:-1]), tmp_path / "killed"
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        assert signalled(folder, number, random.randint(1, 5), *lines) == status
    assert "SIGTERM: the state of step" in (folder / "run.log").read_text()
    run(folder, *lines)
    assert_same_run(folder, straight)


@pytest.mark.slow
def test_the_program_is_killed_in_rounds_of_em(of_em, tmp_path):
    """SIGKILL at a line of ``metrics.jsonl`` that is drawn anew each time; 11 are written."""
    folder = tmp_path / "killed"
    status = signalled(folder, signal.SIGKILL, random.randint(1, 10), *EM)
    assert status == -signal.SIGKILL and not (folder / "metrics.json").exists()
    run(folder, *EM, "resume=auto")
    assert_same_run(folder, of_em / "straight")
