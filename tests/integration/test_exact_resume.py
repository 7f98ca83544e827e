"""A run that is killed anywhere and goes on leaves what an uninterrupted one does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir

from gfn_runner import rounds
from gfn_runner.algorithms import em as em_module
from gfn_runner.algorithms.em import _samples as em_samples
from gfn_runner.algorithms.em import read_record
from gfn_runner.app import train_and_evaluate
from gfn_runner.callbacks import evaluation
from gfn_runner.callbacks.evaluation import EvaluationCallback
from gfn_runner.callbacks.progress import StepProgress
from gfn_runner.cli.compose import CONF, check_lines

ROOT = Path(__file__).resolve().parents[2]
COMMON = [
    "experiment=tiny/smoke",
    "callbacks.progress.show=none",
    "callbacks.evaluation.every=2",
    "callbacks.evaluation.votes=2",
    "callbacks.evaluation.singles=3",
    "callbacks.evaluation.final=2",
    "callbacks.evaluation.baseline_shots=[]",
    "callbacks.checkpoint.every=2",
    "callbacks.replay.probability=0.4",
    "trainer.max_steps=5",
    "trainer.threads=1",
]
ARITHMETIC = ["task=arithmetic", "task.data.n_test=4", "task.data.n_answers=20"]
LEARNT = [*ARITHMETIC, "callbacks/replay=off", "callbacks.replay.probability=0"]
CASES: dict[str, list[str]] = {
    "arithmetic": ARITHMETIC,
    "arithmetic_tool": ["task=arithmetic_tool", "task.data.n_test=4", "task.data.n_answers=20"],
    "random_number": ["task=random_number"],
    "continuation": ["task=continuation", "task.data.n_test=2"],
    "contrastive": ["task=contrastive"],
    "translation": ["task=translation", "task.data.n_test=3"],
    "constrained": ["task=constrained", "task.data.n_train=8", "task.data.n_test=2"],
    "posterior": ["task=posterior"],
    "infilling": ["task=infilling", "task.data.n_test=3", "task.data.n_train=20"],
    "subjectivity": [
        "task=subjectivity",
        "task.data.n_train=4",
        "task.data.n_test=2",
        "em.rounds=2",
        "em.m_steps=2",
        "em.m_batch=2",
        "trainer.max_steps=3",
    ],
    "learned log Z, accumulated": [*ARITHMETIC, "objective=tb", "trainer.accumulate=2"],
    "sft": [*LEARNT, "baseline=sft"],
    "ppo": [*LEARNT, "baseline=ppo"],
    "grpo": [*LEARNT, "baseline=grpo"],
}
MOMENTS = ("before the checkpoint", "in the evaluation", "behind the evaluation")
# Each leaves a checkpoint behind (of step 2 or 4) and work to be done: the checkpoint of a step comes
# before its evaluation.
TIMES = [
    *(("before the checkpoint", step) for step in (3, 4, 5)),
    *(("in the evaluation", step) for step in (4, 2)),
    *(("behind the evaluation", step) for step in (2, 4)),
]
# The cases die at all of these times in turn.
KILLS = [(case, *TIMES[number % len(TIMES)]) for number, case in enumerate(CASES)]


class Killed(BaseException):
    """Stands for a signal that cannot be caught: nothing that tidies up may answer it."""


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """They are not what is compared, and take as long as the training."""
    monkeypatch.setattr("gfn_runner.report.figures.draw_all", lambda *_: None)


def run(folder: Path, lines: list[str]) -> None:
    lines = [*COMMON, *lines]
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        config = check_lines(lines)
    train_and_evaluate(config, folder, lines)


def kill(monkeypatch: pytest.MonkeyPatch, moment: str, step: int) -> None:
    """Die at a step, at a moment of it."""
    holder, name = {
        "before the checkpoint": (StepProgress, "on_train_batch_end"),
        "in the evaluation": (EvaluationCallback, "on_validation_epoch_end"),
        "behind the evaluation": (StepProgress, "on_validation_end"),
    }[moment]

    lives = getattr(holder, name)

    def dies(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step >= step:
            raise Killed
        lives(self, trainer, *args, **kwargs)

    monkeypatch.setattr(holder, name, dies)


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found.isnan(), expected.isnan()), place
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}/{number}")
    else:
        assert found == expected, place


def state_of(folder: Path) -> dict[str, Any]:
    """Weights, optimizer, schedules and buffer of the newest checkpoint."""
    newest = max(folder.glob("checkpoints/*.ckpt"))
    state = torch.load(newest, weights_only=True)
    kept = (
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "callbacks",
        "global_step",
        "m_steps",
        "rollouts",
    )
    state["callbacks"].pop("TrainingLog")  # its record holds seconds
    return {name: state[name] for name in kept if name in state}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    timed = (
        "time",
        "seconds/",
        "train/seconds",
        "train/cpu_seconds",
        "train/tokens_per_second",
        "run/",
    )
    return {name: value for name, value in record.items() if not name.startswith(timed)}


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same(state_of(found), state_of(expected))
    assert lines_of(found) == lines_of(expected)
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl", "overrides.yaml"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    numbers = [json.loads((f / "metrics.json").read_text()) for f in (found, expected)]
    assert untimed(numbers[0]) == untimed(numbers[1])
    answers = "answer_adapter/adapter_model.safetensors"
    if (expected / answers).is_file():
        assert (found / answers).read_bytes() == (expected / answers).read_bytes()


@pytest.mark.parametrize(("case", "moment", "step"), KILLS)
def test_killed_and_gone_on_with_it_is_the_same_run(case, moment, step, tmp_path, monkeypatch):
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    run(straight, CASES[case])
    with monkeypatch.context() as patched:
        kill(patched, moment, step)
        with pytest.raises(Killed):
            run(folder, CASES[case])
    assert not (folder / "metrics.json").exists()
    assert list(folder.glob("checkpoints/*.ckpt")), "nothing to go on from"
    run(folder, [*CASES[case], "resume=auto"])
    assert_same_run(folder, straight)


@pytest.mark.parametrize("case", ["ppo", "grpo"])
def test_killed_between_two_updates_on_one_rollout(case, tmp_path, monkeypatch):
    """Updates 1 to 4 are on one rollout, the checkpoint is of update 2."""
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    run(straight, CASES[case])
    with monkeypatch.context() as patched:
        kill(patched, "before the checkpoint", 3)
        with pytest.raises(Killed):
            run(folder, CASES[case])
    newest = torch.load(max(folder.glob("checkpoints/*.ckpt")), weights_only=True)
    assert newest["global_step"] == 2 and newest["rollouts"][0].keys() == {0}
    run(folder, [*CASES[case], "resume=auto"])
    assert_same_run(folder, straight)


@pytest.fixture(scope="module")
def em(tmp_path_factory) -> Path:
    """Two rounds of 3 steps, each with an M-step behind it."""
    folder = tmp_path_factory.mktemp("em") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gfn_runner.report.figures.draw_all", lambda *_: None)
        run(folder, CASES["subjectivity"])
    return folder


def kill_in_em(monkeypatch: pytest.MonkeyPatch, moment: str, number: int) -> None:
    """Die around M-step ``number``, or in the E-step behind it."""
    if moment == "in the E-step behind it":
        return kill(monkeypatch, "before the checkpoint", 3 * number + 2)
    begun, rename, save_ = [], Path.rename, rounds.save_answers

    def samples(lm: Any, conditions: Any, rule: Any, tool: Any, *name: Any) -> Any:
        begun.append(name)
        # Of an optimizer step that is not its first one.
        if moment == "in it" and name[2:] == (number, 1):
            raise Killed
        return em_samples(lm, conditions, rule, tool, *name)

    def renamed(self: Path, target: Any) -> Path:
        if moment == "before its adapter is in place" and lands(target, begun, number):
            raise Killed
        return rename(self, target)

    def saved(lm: Any, folder: Path, metrics: Any) -> None:
        save_(lm, folder, metrics)
        if moment == "behind its adapter" and lm.m_steps == number:
            raise Killed

    monkeypatch.setattr(em_module, "_samples", samples)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(rounds, "save_answers", saved)


def lands(target: Any, begun: list[Any], number: int) -> bool:
    return Path(target).name == em_module.FOLDER and begun[-1][2] == number


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("in it", 1),
        ("before its adapter is in place", 2),
        ("behind its adapter", 1),
        ("behind its adapter", 2),
        ("in the E-step behind it", 1),
    ],
)
def test_killed_around_an_m_step(moment, number, em, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    with monkeypatch.context() as patched:
        kill_in_em(patched, moment, number)
        with pytest.raises(Killed):
            run(folder, CASES["subjectivity"])
    made = number - (moment in ("in it", "before its adapter is in place"))
    assert read_record(folder).m_steps == made
    run(folder, [*CASES["subjectivity"], "resume=auto"])
    assert_same_run(folder, em)
    assert [n for line in lines_of(folder) for n in line].count("m_step/loss_after") == 2
    assert not [p.name for p in folder.iterdir() if p.name.startswith("answer_adapter.")]


def test_a_changed_learning_rate_counts_from_the_first_step_on(tmp_path):
    """A checkpoint brings back the rates that its run had; the config has the say."""
    lines = [*ARITHMETIC, "objective=tb", "optim.decay=true", "optim.warmup=3"]
    changed = ["optim.lr=1e-4", "optim.weight_decay=0.1", "optim.betas=[0.8,0.9]"]
    changed += ["objective.log_z_lr=0.01", "trainer.max_steps=4"]
    straight, folder = tmp_path / "straight", tmp_path / "changed"
    run(straight, [*lines, *changed])
    run(folder, [*lines, "trainer.max_steps=2"])
    run(folder, [*lines, *changed, f"resume={folder}"])
    for name in ("lr_schedulers", "param_groups"):
        found, expected = state_of(folder), state_of(straight)
        if name == "param_groups":
            found, expected = found["optimizer_states"][0], expected["optimizer_states"][0]
        assert_same(found[name], expected[name])
    rates = [
        [line["train/lr"] for line in lines_of(f) if line["step"] > 2 and "train/lr" in line]
        for f in (folder, straight)
    ]
    assert rates[0] == rates[1] and rates[0][0] == 1e-4 * 3 / 3 and len(rates[0]) == 2


FOUR = ["task=random_number", "trainer.max_steps=4"]


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("four") / "run"
    run(folder, FOUR)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", [2, 4])
def test_every_moment_of_a_step_can_be_the_last(moment, step, four, tmp_path, monkeypatch):
    """Step 4 is the last one: behind it there is nothing to train, but perhaps to evaluate."""
    folder = tmp_path / "killed"
    with monkeypatch.context() as patched:
        kill(patched, moment, step)
        with pytest.raises(Killed):
            run(folder, FOUR)
    run(folder, [*FOUR, "resume=auto"])
    assert_same_run(folder, four)


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_while_an_evaluation_is_measured_is_obeyed(step, four, tmp_path, monkeypatch):
    """Behind step 4 no batch comes at whose end it would be looked at."""
    folder, measure, seen = tmp_path / "stopped", evaluation.measure, []

    def measured(*args: Any, **kwargs: Any) -> Any:
        seen.append(args)
        if len(seen) == step // 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "measure", measured)
        with pytest.raises(SystemExit) as stop:
            run(folder, FOUR)
    assert stop.value.code == 128 + signal.SIGTERM and not (folder / "metrics.json").exists()
    run(folder, [*FOUR, "resume=auto"])
    assert_same_run(folder, four)


def test_killed_and_stopped_at_random_times(tmp_path):
    """The program itself, from outside: SIGKILL, then SIGTERM, then left alone."""
    lines = [*COMMON, *ARITHMETIC, "trainer.max_steps=24", "callbacks.evaluation.every=6"]

    def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gfn_runner", *lines, f"hydra.run.dir={folder}", *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    assert start(tmp_path / "straight").wait() == 0
    folder = tmp_path / "killed"
    written = folder / "metrics.jsonl"
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)):
        process = start(folder, "resume=auto")
        begun = time.time()
        wanted = random.randint(1, 5)
        # New lines: those behind the checkpoint are cut before the first one is written.
        while process.poll() is None and wanted_lines(written, since=begun) < wanted:
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == code
    assert "SIGTERM: the state of step" in (folder / "run.log").read_text()
    assert start(folder, "resume=auto").wait() == 0
    assert_same_run(folder, tmp_path / "straight")


@pytest.mark.parametrize(("case", "most"), [("random_number", 6), ("subjectivity", 10)])
def test_the_program_is_killed_outright(case, most, em, tmp_path):
    """SIGKILL at a line of ``metrics.jsonl`` that is drawn anew each time; EM writes 11 of them."""
    straight, folder, wanted = em, tmp_path / "killed", random.randint(1, most)
    if case != "subjectivity":
        straight = tmp_path / "straight"
        run(straight, CASES[case])
    command = [sys.executable, "-m", "gfn_runner", *COMMON, *CASES[case], f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and wanted_lines(folder / "metrics.jsonl", since=0) < wanted:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (folder / "metrics.json").exists()
    run(folder, [*CASES[case], "resume=auto"])
    assert_same_run(folder, straight)


def wanted_lines(path: Path, since: float) -> int:
    """How many lines of a file were written since then."""
    text = path.read_text() if path.is_file() else ""
    whole = [line for line in text.split("\n")[:-1] if line]
    return sum(json.loads(line)["time"] >= since for line in whole)
