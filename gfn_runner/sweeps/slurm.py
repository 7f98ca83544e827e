"""Queries to SLURM: partitions, states of jobs, and whether it would accept a job. Submits nothing.

Every function raises ``Unreachable`` if SLURM does not respond.
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

_SECONDS = 30  # timeout of a SLURM command
# Every other state (PENDING, RUNNING, COMPLETING, REQUEUED, …) ends in one of these.
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
GONE = "GONE"  # our name for a job that SLURM has forgotten
OVER = frozenset((*ENDED, GONE))


class Unreachable(Exception):
    """SLURM does not respond; the message says why."""


@dataclass(frozen=True)
class Partition:
    """A partition of the cluster; ``minutes`` is its time limit, ``None`` for no limit."""

    name: str
    default: bool
    minutes: float | None


@dataclass(frozen=True)
class JobState:
    """State of a job as named by SLURM (``RUNNING``), or ``GONE``, and why it is pending or has ended."""

    state: str
    reason: str = ""


def partitions() -> list[Partition]:
    """Return all partitions visible to this user."""
    found = {}
    for line in _ask("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, limit = line.strip().partition("|")
        found[name] = Partition(name.removesuffix("*"), name.endswith("*"), _minutes(limit))
    return list(found.values())


def _minutes(limit: str) -> float | None:
    """Parse a time limit of sinfo (``[days-][hours:]minutes:seconds``); ``None`` means no limit."""
    days, _, clock = limit.strip().rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return 1440 * int(days or 0) + seconds / 60


def states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the state of each job, including array elements (``12_3``); needs no accounting."""
    queue = _read("JobID|State|Reason", _squeue("%i|%T|%r"))
    # An array that is cancelled before it starts is no longer listed by element.
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
    # States such as "CANCELLED by 1000".
    state = fields["State"].split(" ")[0].rstrip("+")
    return JobState(state, "" if reason == "None" else reason)


def submitted_from(folder: Path) -> list[str]:
    """Return jobs that have not ended and whose batch script is in the folder, including array elements."""
    queue = _read("JobID|State|Script", _squeue("%i|%T|%o"))
    return [
        job_id
        for job_id, fields in queue.items()
        if fields["State"] not in ENDED
        and Path(fields["Script"]).parent.resolve() == folder.resolve()
    ]


def cancel(job_ids: Sequence[str], seconds: float = 600, poll: float = 1) -> None:
    """Cancel jobs and wait until they have ended, since a training run saves a checkpoint first."""
    _ask("scancel", *job_ids)
    deadline = time.monotonic() + seconds
    while left := [name for name, seen in states(job_ids).items() if seen.state not in OVER]:
        if time.monotonic() > deadline:
            raise Unreachable(f"scancel: {', '.join(left)} still there after {seconds:.0f} seconds")
        time.sleep(poll)


def refusal(script: str) -> str:
    """Return why SLURM refuses a batch script; empty if it would accept it. Submits nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        done = _run("sbatch", "--test-only", str(path))
    return "" if done.returncode == 0 else sbatch_message(done.stderr)


def sbatch_message(text: str) -> str:
    """Extract sbatch's message, without prefixes, from an error text; return all of it if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help" not in line]
    own = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in own or lines)


def _squeue(columns: str) -> str:
    # By user id: a user name would come from LOGNAME or USER, which may be set to anything.
    return _ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", columns)


def _read(header: str, rows: str) -> Mapping[str, Mapping[str, str]]:
    """Parse rows by job, as submitit parses sacct: ``7_[0-1,4%2]`` stands for 7_0, 7_1 and 7_4."""
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
