"""What SLURM says: its partitions, the states of jobs, whether it would take one; it submits none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gfn_runner.sweeps.record import State

_SECONDS = 30  # that a command of SLURM's may take
# Every other state (PENDING, RUNNING, COMPLETING, REQUEUED, …) is on the way to one of these.
ENDED: dict[str, State] = {
    "COMPLETED": "ok",
    "CANCELLED": "cancelled",
    "PREEMPTED": "cancelled",
    "TIMEOUT": "timed out",
    "DEADLINE": "timed out",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "BOOT_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
}
GONE = "GONE"  # our word for a job that SLURM does not remember
OVER = frozenset((*ENDED, GONE))


class Unreachable(Exception):
    """SLURM gives no answer; the text says why."""


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster.

    Attributes:
        name: of it.
        default: whether jobs go there that name none.
        minutes: longest time of a job; ``None`` without a limit.
    """

    name: str
    default: bool
    minutes: float | None


@dataclass(frozen=True)
class Seen:
    """A job as SLURM sees it.

    Attributes:
        state: in SLURM's words, e.g. ``RUNNING``; ``GONE`` for a job that it does not remember.
        reason: why it waits or has ended; empty if SLURM has none.
    """

    state: str
    reason: str = ""


def here() -> bool:
    """Whether this machine has SLURM's commands."""
    return all(shutil.which(command) for command in ("sbatch", "srun", "squeue", "sinfo"))


def partitions() -> list[Partition]:
    """All partitions that one may see.

    Raises:
        Unreachable: without an answer.
    """
    found = {}
    for line in _ask("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, limit = line.strip().partition("|")
        found[name] = Partition(name.removesuffix("*"), name.endswith("*"), minutes(limit))
    return list(found.values())


def minutes(limit: str) -> float | None:
    """A time as SLURM writes it (``[days-]hours:minutes:seconds``, …); ``None``: no limit."""
    days, dash, clock = limit.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    if dash:
        parts += ["0"] * (3 - len(parts))
    seconds = 0
    for part in parts if len(parts) > 1 else [*parts, "0"]:
        seconds = 60 * seconds + int(part)
    return 1440 * int(days or 0) + seconds / 60


def states(job_ids: Sequence[str]) -> dict[str, Seen]:
    """The state of each job, elements of arrays (``12_3``) too. Needs no accounting.

    Raises:
        Unreachable: without an answer.
    """
    found: dict[str, Seen] = {}
    # By the number: a name comes from LOGNAME or USER, which may say anything.
    answer = _ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%r")
    for line in answer.splitlines():
        name, state, reason = [*line.strip().split("|", 2), "", ""][:3]
        for job_id in _elements(name):
            found[job_id] = Seen(state, "" if reason == "None" else reason)
    # An array that is cancelled before any of it has begun has no elements any more.
    whole = {job_id: found.get(job_id.split("_")[0]) for job_id in job_ids}
    found |= {name: seen for name, seen in whole.items() if seen is not None and name not in found}
    forgotten = [job_id for job_id in job_ids if job_id not in found]
    if forgotten:
        found |= _accounted(forgotten)
    return {job_id: found.get(job_id, Seen(GONE)) for job_id in job_ids}


def submitted_from(folder: Path) -> list[str]:
    """Jobs, elements of arrays too, whose batch script lies in a folder and that have not ended.

    Raises:
        Unreachable: without an answer.
    """
    answer = _ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", "%i|%T|%o")
    found = []
    for line in answer.splitlines():
        name, state, script = [*line.strip().split("|", 2), "", ""][:3]
        if state not in ENDED and Path(script).parent.resolve() == folder.resolve():
            found += _elements(name)
    return found


def cancel(job_ids: Sequence[str], seconds: float = 600, poll: float = 1) -> None:
    """Cancel jobs, and wait until they have ended: one that trains saves first.

    Args:
        job_ids: of them.
        seconds: to wait at most.
        poll: seconds between two looks.

    Raises:
        Unreachable: without an answer, or if one has not ended by then.
    """
    _ask("scancel", *job_ids)
    deadline = time.monotonic() + seconds
    while left := [name for name, seen in states(job_ids).items() if seen.state not in OVER]:
        if time.monotonic() > deadline:
            raise Unreachable(f"scancel: {', '.join(left)} after {seconds:.0f} seconds still there")
        time.sleep(poll)


def _elements(name: str) -> list[str]:
    """Jobs that SLURM names together: ``7_[0-1,4%2]`` are 7_0, 7_1 and 7_4, cancelled before they ran."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(%\d+)?\]", name)
    if array is None:
        return [name]
    ends = [part.partition("-")[::2] for part in array[2].split(",")]
    return [
        f"{array[1]}_{number}"
        for first, last in ends
        for number in range(int(first), int(last or first) + 1)
    ]


def _accounted(job_ids: Sequence[str]) -> dict[str, Seen]:
    """States out of SLURM's accounting, where there is one."""
    command = ("sacct", "-n", "-X", "-P", "-j", ",".join(job_ids), "-o", "JobID,State")
    try:
        lines = _ask(*command).splitlines()
    except Unreachable:
        return {}
    # "CANCELLED by 1000" and the like.
    pairs = (line.strip().partition("|")[::2] for line in lines)
    return {job_id: Seen(state.split(" ")[0].rstrip("+")) for job_id, state in pairs if state}


def refusal(script: str) -> str:
    """What SLURM says against a batch script; empty if it would take it. Nothing is submitted.

    Raises:
        Unreachable: without an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        done = _run("sbatch", "--test-only", str(path))
    if done.returncode == 0:
        return ""
    lines = [line.removeprefix("sbatch: ").strip() for line in done.stderr.splitlines()]
    return "; ".join(
        line.removeprefix("error: ") for line in lines if line and "--help" not in line
    )


def _ask(*command: str) -> str:
    done = _run(*command)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Unreachable(f"{command[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise Unreachable(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} gives no answer within {_SECONDS} seconds") from None
