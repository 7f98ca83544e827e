"""The program in forked processes: what a kill or a fault ends is theirs alone, and torch is imported once."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.runs import exit_code

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["gfn_runner.train", "transformers.models.llama", "tests.forked"])

# What is done in the forked process before the program begins.
Prepare = Callable[[], None]


@functools.cache
def _import_once() -> None:
    """Have the server ready, so that a moment of a program is not one of its imports."""
    first = _SERVER.Process(target=os.getpid)
    first.start()
    first.join()


def _program(arguments: tuple[str, ...], said: Path, prepare: Prepare | None) -> None:
    said.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if prepare is not None:
        prepare()
    code = exit_code(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Program:
    """The program with a command line, begun in a process of its own; figures are not drawn.

    Attributes:
        said: file of what it prints, added to that of programs before it.
    """

    def __init__(self, *arguments: str | Path, said: Path, prepare: Prepare | None = None) -> None:
        self.said = said
        words = tuple(map(str, arguments))
        _import_once()
        self.process: BaseProcess = _SERVER.Process(target=_program, args=(words, said, prepare))
        self.begun = time.monotonic()
        self.process.start()

    def killed(self, seconds: float) -> bool:
        """Kill it so many seconds after it has begun; false if it has ended before."""
        self.process.join(max(0.0, self.begun + seconds - time.monotonic()))
        if self.process.exitcode is None:
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGKILL)
        return self.ended() == -signal.SIGKILL

    def ended(self, timeout: float = 600) -> int:
        """Wait for its end; its exit code, minus the number of the signal that has ended it."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"it goes on after {timeout} s:\n{self.text()}")
        return code

    def text(self) -> str:
        """What was printed."""
        return self.said.read_text(encoding="utf-8") if self.said.exists() else ""
