"""Signals: what is saved, what is handed on, and what ends; real signals, no training."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gfn_runner.callbacks import preemption
from gfn_runner.callbacks.checkpoint import AdapterCheckpoint
from gfn_runner.callbacks.preemption import PreemptionCallback, job_is_running, usr2_spares

from ..hearing import as_before, send  # noqa: F401

pytestmark = pytest.mark.usefixtures("as_before")


class Checkpoint(AdapterCheckpoint):
    """Writes nothing."""

    def __init__(self, good: bool = True):
        super().__init__()
        self.steps: list[int] = []
        self.good = good

    def save(self, trainer: Any) -> bool:
        self.steps.append(trainer.global_step)
        return self.good


class Run:
    """A training that a callback sees."""

    def __init__(self, good: bool = True):
        self.checkpoint, self.callback = Checkpoint(good), PreemptionCallback()
        callbacks, folder = [self.checkpoint, self.callback], Path("runs/a")
        self.trainer: Any = SimpleNamespace(
            global_step=0, callbacks=callbacks, default_root_dir=folder
        )
        self.callback.setup(self.trainer, None, "fit")  # type: ignore[arg-type]
        self.callback.on_train_start(self.trainer, None)  # type: ignore[arg-type]

    def step(self, moves: int = 1) -> None:
        self.trainer.global_step += moves
        self.callback.on_train_batch_end(self.trainer, None, None, None, 0)  # type: ignore[arg-type]

    def reach(self, hook: str) -> None:
        batch = (None, None, 0) if hook.endswith("batch_end") else ()
        getattr(self.callback, hook)(self.trainer, None, *batch)

    def last_step(self) -> int:
        """The exit code of a step that ends the process."""
        with pytest.raises(SystemExit) as stop:
            self.step()
        return stop.value.code


ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_saves_at_the_end_of_the_step_and_ends(number, caplog):
    before = signal.getsignal(number)
    run = Run()
    run.step()
    send(number)
    run.step(moves=0)
    assert run.checkpoint.steps == [], "in the middle of a step nothing can be saved"
    assert run.last_step() == 128 + number and run.checkpoint.steps == [2]
    assert "step 2 is saved; to resume from the newest checkpoint" in caplog.text
    assert "python -m gfn_runner resume=runs/a" in caplog.text
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_validation_end", "on_train_end"])
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_after_the_last_training_batch_is_obeyed(hook, number):
    """At a batch of an evaluation, when it is measured, or when the last checkpoint is written."""
    run = Run()
    run.step()
    send(number)
    with pytest.raises(SystemExit) as stop:
        run.reach(hook)
    assert stop.value.code == 128 + number and run.checkpoint.steps == [1]
    assert not run.callback._before


def test_a_signal_while_nobody_is_asked_any_more_reaches_whoever_listens_next(monkeypatch):
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    run = Run()
    monkeypatch.setattr(run.callback, "_received", lambda: send(signal.SIGTERM))
    run.reach("on_train_end")
    assert heard == [signal.SIGTERM]


def test_the_final_evaluation_is_not_watched():
    run = Run()
    run.reach("on_train_end")
    run.callback.received = signal.SIGTERM
    run.reach("on_validation_end")
    assert run.checkpoint.steps == []


def test_a_state_that_could_not_be_saved_is_not_said_to_be(caplog):
    run = Run(good=False)
    send(signal.SIGTERM)
    send(signal.SIGUSR2)  # only saves: the end is not taken back
    assert run.last_step() == 128 + signal.SIGTERM
    assert "step 1 is not saved" in caplog.text and "resume=" not in caplog.text


def test_a_second_ctrl_c_stops_at_once():
    run = Run()
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert run.checkpoint.steps == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_sends_stays_ignored_where_a_shell_has_said_so(number):
    signal.signal(number, signal.SIG_IGN)
    run = Run()
    send(number)
    run.step()
    assert run.checkpoint.steps == [] and signal.getsignal(number) == signal.SIG_IGN
    send(signal.SIGTERM)
    run.last_step()


def test_usr2_saves_and_goes_on_where_nobody_else_listens():
    with usr2_spares():
        send(signal.SIGUSR2)  # spared outside of training too
        run = Run()
        send(signal.SIGUSR2)
        run.reach("on_validation_batch_end")
        assert run.checkpoint.steps == []
        run.step()
        run.step()
        assert run.checkpoint.steps == [1]
        run.reach("on_train_end")
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


class Requeued(BaseException):
    """What submitit's handler ends with: an exit that it chooses itself."""


@pytest.fixture
def launcher():
    def requeue(number: int, frame: Any) -> None:
        raise Requeued(number)

    signal.signal(signal.SIGUSR2, requeue)


@pytest.mark.parametrize(
    ("hook", "saved"), [("step", 1), ("on_validation_end", 0), ("on_train_end", 0)]
)
def test_a_launcher_gets_the_signal_after_the_checkpoint(hook, saved, launcher):
    run = Run()
    send(signal.SIGUSR2)
    with pytest.raises(Requeued):
        run.step() if hook == "step" else run.reach(hook)
    assert run.checkpoint.steps == [saved]


@pytest.mark.parametrize(("running", "ends"), [(True, Requeued), (False, SystemExit)])
def test_sigterm_requeues_only_what_nobody_has_cancelled(running, ends, launcher, monkeypatch):
    monkeypatch.setattr(preemption, "job_is_running", lambda: running)
    run = Run()
    send(signal.SIGTERM)
    with pytest.raises(ends):
        run.step()
    assert run.checkpoint.steps == [1]


def test_a_rank_that_launchers_leave_alone_waits_for_the_end(monkeypatch):
    signal.signal(signal.SIGUSR2, lambda *_: None)
    waited: list[float] = []
    monkeypatch.setattr(preemption.time, "sleep", waited.append)
    run = Run()
    send(signal.SIGUSR2)
    run.last_step()
    assert waited


@pytest.mark.parametrize("state", ["RUNNING", "CANCELLED", "COMPLETING", "REQUEUED"])
def test_slurm_is_asked_for_the_jobs_state(state, slurm_commands, monkeypatch):
    assert not job_is_running(), "no job at all"
    line = f"JobId=7 JobName=a JobState={state} Reason=None RunTime=00:01:02"
    slurm_commands(scontrol=f'[ "$5" = 7 ] || [ "$4" = 7 ] && echo \'{line}\'')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for executor in ("", "local"):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        assert not job_is_running(), "a sweep on this machine, within somebody's job"
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert job_is_running() == (state == "RUNNING")
    monkeypatch.setenv("PATH", "")
    assert not job_is_running(), "no command"
