"""Signals to a sweep and to its runs; real signals and processes, no training."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gfn_runner.sweeps.launching import processes
from gfn_runner.sweeps.launching.signals import (
    defer_signals,
    exit_on_termination,
    ignore_termination_signals,
)

from ..hearing import as_before, send  # noqa: F401

pytestmark = pytest.mark.usefixtures("as_before")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_told_ends_as_with_ctrl_c(number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop, exit_on_termination():
        send(number)
    assert stop.value.code == 128 + number and signal.getsignal(number) is before


def test_a_sweep_under_nohup_does_not_hear_of_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with exit_on_termination():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        send(signal.SIGHUP)  # would end this test
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit)],
)
def test_what_has_started_is_known_before_a_signal_counts(number, ends):
    known = []
    with pytest.raises(ends), exit_on_termination(), defer_signals():
        send(number)
        known.append("the process")
    assert known
    with ignore_termination_signals():
        send(number)


def child(code: str) -> subprocess.Popen[str]:
    """A process that says a line once its handlers stand."""
    command = [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


WAITS = "print('ready', flush=True)\ntime.sleep(60)"


def test_a_run_is_ended_by_its_sweep_and_not_by_the_terminal():
    with defer_signals():
        process = child(WAITS)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set(), "here they are heard"


def job(process: subprocess.Popen[str]) -> SimpleNamespace:
    """What submitit makes of a process."""
    return SimpleNamespace(
        _process=process, job_id=str(process.pid), done=lambda: process.poll() is not None
    )


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(processes, "_PATIENCE", 3)
    monkeypatch.setattr(processes, "_AGAIN", 0.3)
    monkeypatch.setattr(processes, "_POLL", 0.05)


def test_no_run_is_left_behind(quickly, caplog):
    deaf_one = child(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAITS}")
    twice = child(
        "told = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7) if told else told.append(1))\n"
        + WAITS
    )
    processes._stop([job(deaf_one), job(twice)])
    assert twice.poll() == 7, "what has missed it is told again"
    assert deaf_one.poll() == -signal.SIGKILL
    assert f"{deaf_one.pid} has not ended" in caplog.text and str(twice.pid) not in caplog.text


def test_runs_are_told_even_if_the_terminal_is_gone(quickly, monkeypatch):
    def gone(*_, **__):
        raise OSError(5, "Input/output error")

    process = child(WAITS)
    monkeypatch.setattr("builtins.print", gone)
    processes._stop([job(process)])
    assert process.poll() == -signal.SIGTERM
