"""Steps with different ways for torch's threads to wait, alone and next to another busy process.

How threads wait is read when torch is imported, so each way has its own process. The processes take turns
step by step; those that are not their turn are idle.

    python scripts/bench/threads.py CONDITIONS      # such a process: a line in, a step, its seconds out
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
WAITING = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# The package's own way comes first: ratios are relative to it.
WAYS: dict[str, dict[str, str]] = {
    "spin briefly (GOMP_SPINCOUNT=1000, the program's)": {"GOMP_SPINCOUNT": "1000"},
    "sleep (OMP_WAIT_POLICY=PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin (OpenMP's default)": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


class Stepper:
    """A process that executes a step on request."""

    def __init__(self, way: Mapping[str, str], conditions: int):
        clean = {name: value for name, value in os.environ.items() if name not in WAITING}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(conditions)],
            env={**clean, **way},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, number: int = 0) -> float:
        """Return the seconds of one step."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Keep a core busy with another process within the context."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        yield
    finally:
        other.kill()
        other.wait()


def measured(
    rounds: int, conditions: int, ways: Mapping[str, Mapping[str, str]] = WAYS
) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of a step by case (``quiet``, ``busy``) and way, alternating in every round."""
    seconds: dict[str, dict[str, list[float]]] = {
        case: {name: [] for name in ways} for case in ("quiet", "busy")
    }
    steppers = {name: Stepper(way, conditions) for name, way in ways.items()}
    try:
        for stepper in steppers.values():
            stepper()  # loads the model
        for _ in range(rounds):
            for case, others in (("quiet", contextlib.nullcontext()), ("busy", busy())):
                with others:
                    for name, stepper in steppers.items():
                        seconds[case][name].append(stepper())
    finally:
        for stepper in steppers.values():
            stepper.close()
    return seconds


def main(conditions: int) -> None:
    sys.path.insert(0, str(SCRIPTS))
    import dataclasses

    from bench.ours import OurStep
    from bench.work import SHAPES, make_lm

    shape = dataclasses.replace(SHAPES["arithmetic"], conditions=conditions)
    step = OurStep(make_lm("embedded", "cpu"), shape)
    step(0)
    for number, _ in enumerate(sys.stdin, start=1):
        began = time.perf_counter()
        step(number)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
