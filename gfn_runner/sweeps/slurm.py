"""What SLURM says: its partitions, the states of jobs, whether it would take one. Submits nothing.

Every function raises ``Unreachable`` where it does not answer.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gfn_runner.runtime.sweep_record import StateName

_SECONDS = 30  # that a command of SLURM may take
# Every other state (PENDING, RUNNING, COMPLETING, REQUEUED, …) leads to one of these.
ENDED: dict[str, StateName] = {
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
GONE = "GONE"  # our name for a job that SLURM does not remember
OVER = frozenset((*ENDED, GONE))


class Unreachable(Exception):
    """SLURM does not answer; the text says why."""


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster; ``minutes`` is the longest time of a job, ``None`` without a limit."""

    name: str
    default: bool
    minutes: float | None


@dataclass(frozen=True)
class JobState:
    """A job's state as SLURM names it (``RUNNING``), or ``GONE``; and why it waits or has ended."""

    state: str
    reason: str = ""


def partitions() -> list[Partition]:
    """All partitions that this user sees."""
    found = {}
    for line in _ask("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, limit = line.strip().partition("|")
        found[name] = Partition(name.removesuffix("*"), name.endswith("*"), _minutes(limit))
    return list(found.values())


def _minutes(limit: str) -> float | None:
    """A time as sinfo writes it (``[days-][hours:]minutes:seconds``); ``None``: no limit."""
    days, _, clock = limit.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return 1440 * int(days or 0) + seconds / 60


def states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The state of each job, elements of arrays (``12_3``) too. Needs no accounting."""
    queue = _read("JobID|State|Reason", _squeue("%i|%T|%r"))
    # An array that is cancelled before any of it has begun has no elements any more.
    found = {job_id: queue.get(job_id) or queue.get(job_id.split("_")[0]) for job_id in job_ids}
    forgotten = [job_id for job_id, fields in found.items() if fields is None]
    if forgotten:
        accounted: Mapping[str, Mapping[str, str]] = {}
        with contextlib.suppress(Unreachable):  # a cluster without accounting
            command = ("sacct", "-n", "-X", "-P", "-j", ",".join(forgotten), "-o", "JobID,State")
            accounted = _read("JobID|State", _ask(*command))
        found |= {job_id: accounted.get(job_id) for job_id in forgotten}
    return {job_id: _state(fields) for job_id, fields in found.items()}


def _state(fields: Mapping[str, str] | None) -> JobState:
    if fields is None or not fields["State"]:
        return JobState(GONE)
    reason = fields.get("Reason", "None")
    # "CANCELLED by 1000" and the like.
    state = fields["State"].split(" ")[0].rstrip("+")
    return JobState(state, "" if reason == "None" else reason)


def submitted_from(folder: Path) -> list[str]:
    """Jobs whose batch script is in a folder and that have not ended, elements of arrays too."""
    queue = _read("JobID|State|Script", _squeue("%i|%T|%o"))
    return [
        job_id
        for job_id, fields in queue.items()
        if fields["State"] not in ENDED
        and Path(fields["Script"]).parent.resolve() == folder.resolve()
    ]


def cancel(job_ids: Sequence[str], seconds: float = 600, poll: float = 1) -> None:
    """Cancel jobs, and wait until they have ended: one that trains saves first."""
    _ask("scancel", *job_ids)
    deadline = time.monotonic() + seconds
    while left := [name for name, seen in states(job_ids).items() if seen.state not in OVER]:
        if time.monotonic() > deadline:
            raise Unreachable(f"scancel: {', '.join(left)} still there after {seconds:.0f} seconds")
        time.sleep(poll)


def refusal(script: str) -> str:
    """What SLURM says against a batch script; empty if it would take it. Submits nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        done = _run("sbatch", "--test-only", str(path))
    return "" if done.returncode == 0 else sbatch_message(done.stderr)


def sbatch_message(text: str) -> str:
    """What sbatch says in an error text, without its prefixes; all of the text where it says nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help" not in line]
    own = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in own or lines)


def _squeue(columns: str) -> str:
    # By the user's number: a name comes from LOGNAME or USER, which may say anything.
    return _ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", columns)


def _read(header: str, rows: str) -> Mapping[str, Mapping[str, str]]:
    """Rows by job, as submitit reads sacct: ``7_[0-1,4%2]`` are 7_0, 7_1 and 7_4."""
    from submitit.slurm.slurm import SlurmInfoWatcher

    return SlurmInfoWatcher().read_info(f"{header}\n{rows}")


def _ask(*command: str) -> str:
    done = _run(*command)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Unreachable(f"{command[0]}: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return done.stdout


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise Unreachable(f"{command[0]} is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} does not answer within {_SECONDS} seconds") from None
