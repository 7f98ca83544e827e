"""The record of a sweep, its jobs and their states: ``sweep.json`` in the sweep's folder."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.overrides import HYDRA_SWEEP_FILE

logger = logging.getLogger(__name__)
RECORD = "sweep.json"
# State of a run, in the record and on pages. A ``silent`` run has not ended, but has not written anything
# for a long time.
StateName = Literal[
    "waiting",
    "submitted",
    "running",
    "silent",
    "ok",
    "failed",
    "cancelled",
    "timed out",
    "interrupted",
]
_ENDED = ("ok", "failed", "cancelled", "timed out")
_LOG_LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: ")
_FAILURE = re.compile(r"^ERROR gfn_runner[\w.]*: the run has failed: ", re.MULTILINE)


@dataclass
class Job:
    """One run of a sweep.

    Attributes:
        overrides: command-line overrides, without those of Hydra itself.
        folder: folder of the run, relative to the sweep's.
        state: ``waiting`` (not started or submitted yet), ``submitted`` (queued on a cluster), ``running``,
            ``ok``, ``failed``, ``cancelled``, ``timed out``, ``interrupted`` (along with the sweep).
        why: reason for the state; empty for ``ok``.
        again: false if it finished before this start of the sweep and was not run again.
        value: its return value, as defined by ``optimized_metric``.
    """

    number: int
    overrides: list[str]
    folder: str
    state: StateName = "waiting"
    why: str = ""
    again: bool = True
    value: float | None = None
    job_id: str | None = None

    @property
    def ended(self) -> bool:
        return self.state in _ENDED

    @property
    def has_stopped(self) -> bool:
        """Whether nothing executes it any more, even if the sweep may still resume it."""
        return self.ended or self.state == "interrupted"

    def beside(self, common: Sequence[str]) -> list[str]:
        """Return the overrides that are not in ``common``."""
        return [line for line in self.overrides if line not in common]


@dataclass
class Sweep:
    """A sweep and its folder.

    Attributes:
        overrides: command-line overrides that started it; ``resume=<folder>`` starts with them.
        searches: whether it is a search in progress, which draws the values of its next runs later.
        unwritten: whether writing the newest record failed.
    """

    folder: Path
    overrides: list[str] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    searches: bool = False
    unwritten: bool = field(default=False, compare=False)

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Read the sweep of a folder; return an empty one if the folder has none.

        Raises:
            UserError: if its record cannot be read.
        """
        path = folder / RECORD
        if not os.path.isfile(path):  # also handles names that are too long
            return cls(folder)
        from pydantic import TypeAdapter  # not at the top: typos in keys are reported without it

        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
            jobs = TypeAdapter(list[Job]).validate_python(found["jobs"])
            overrides = TypeAdapter(list[str]).validate_python(found["overrides"])
            return cls(folder, overrides, jobs, bool(found.get("searches")))
        except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
            raise UserError.one(
                str(path),
                f"cannot be read ({' '.join(str(error).split())[:200]})",
                "the file as a sweep writes it",
                "hydra.sweep.dir=<another folder> starts anew",
            ) from None

    def write(self) -> None:
        """Write the record into the sweep's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {
            "overrides": self.overrides,
            "searches": self.searches,
            "jobs": [dataclasses.asdict(job) for job in self.jobs],
        }
        write_atomically(self.folder / RECORD, json.dumps(record, indent=2) + "\n")
        self.unwritten = False

    def keep(self, *, changed: bool = True) -> None:
        """Write the record while runs are in progress, which must not end because of a write error.

        An error is logged once, and the record is written later.
        """
        if not changed and not self.unwritten:
            return
        try:
            self.write()
        except OSError as error:
            if not self.unwritten:
                path = self.folder / RECORD
                logger.warning("%s cannot be written now: %s; the runs continue", path, error)
            self.unwritten = True

    def plan(self, jobs: Sequence[Job]) -> list[Job]:
        """Add jobs to the record; a job that is already in it keeps its cluster id.

        Once its run has started, a job's folder is tied to its overrides.

        Raises:
            UserError: lists every folder that two jobs share or that belonged to another job before.

        Returns:
            The record's own entries, in the given order.
        """
        known = {job.folder: job for job in self.jobs}
        problems: list[Problem] = []
        planned: dict[str, Job] = {}
        for job in jobs:
            before = known.get(job.folder)
            if job.folder in planned:
                other = planned[job.folder]
                both = (f"{j.number} ({' '.join(j.overrides)})" for j in (other, job))
                what = f"jobs {' and '.join(both)} would share the folder {job.folder}"
                fix = "a name for each job, e.g. ${hydra:job.num}"
                problems.append(Problem("hydra.sweep.subdir", what, fix))
            elif (
                before is not None
                and sorted(before.overrides) != sorted(job.overrides)
                and (self.folder / job.folder / "config.yaml").exists()
            ):
                before_lines, lines = " ".join(before.overrides), " ".join(job.overrides)
                what = f"{self.folder / job.folder} was made for {before_lines}, not for {lines}"
                allowed = "a folder without a sweep, or that of the same sweep"
                fix = f"python -m gfn_runner -m resume={self.folder} continues that sweep"
                problems.append(Problem("hydra.sweep.dir", what, allowed, fix))
            planned[job.folder] = dataclasses.replace(
                job, job_id=before.job_id if before is not None else None
            )
        if problems:
            raise UserError(problems)
        self.jobs = sorted((known | planned).values(), key=lambda job: job.number)
        self.write()
        return list(planned.values())

    @property
    def common(self) -> list[str]:
        """Overrides that all jobs share; empty for a single job."""
        if len(self.jobs) < 2:
            return []
        return [
            line
            for line in self.jobs[0].overrides
            if all(line in job.overrides for job in self.jobs)
        ]

    @property
    def failures(self) -> list[Job]:
        """Jobs whose state is not ``ok``."""
        return [job for job in self.jobs if job.state != "ok"]


def is_sweep(folder: Path) -> bool:
    """Return whether the folder was created for a sweep or a search."""
    return any((folder / name).is_file() for name in (HYDRA_SWEEP_FILE, RECORD))


def log_length(folder: Path) -> int:
    """Return the current size of a run's log in bytes."""
    log = folder / "run.log"
    return log.stat().st_size if log.is_file() else 0


def reason(folder: Path, since: int = 0) -> str:
    """Return in one line why a run failed, from its log after the first ``since`` bytes; else empty."""
    try:
        text = (folder / "run.log").read_bytes()[since:].decode("utf-8", "replace")
    except OSError:
        return ""
    *_, last = _FAILURE.split(text)
    lines = [line for line in last.split("\n") if line.strip()]
    if last is text or not lines:
        return ""
    if not lines[0].startswith("Traceback"):
        return lines[0].strip()
    # The line after a traceback's last indented one names the exception; others may log after it.
    own = list(itertools.takewhile(lambda line: not _LOG_LINE.match(line), lines))
    indented = [number for number, line in enumerate(own[:-1]) if line.startswith("  ")]
    return own[indented[-1] + 1 if indented else -1].strip()
