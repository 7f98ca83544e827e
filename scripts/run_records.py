"""Finished runs of a page, recorded as lines of a file that is committed next to it.

The runs themselves are in ``outputs/``. With their records, another machine can continue where this one
stopped, and the page can be rewritten without the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seed_tables import Job, made_by

from gfn_runner.errors import UserError
from gfn_runner.report.runs import Run, read_run
from gfn_runner.runtime.json_lines import read_lines, read_metrics, write_lines

FILE = "runs.jsonl"
TRAINING_MINUTES = "run/training_cpu_minutes"  # CPU time of all processes, without evaluation
_SAMPLES = 30
_FIELDS = ("condition", "answer", "singles", "log_reward")


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        table: table of the page.
        method: method of the table.
        seed: seed of the run.
        overrides: its overrides; ``{folder}`` replaces the folder of all runs.
        metrics: contents of ``metrics.json``.
        environments: the commit at each start of the run, in the format of ``environment.json``.
        ended: seconds since 1970.
        samples: samples of the first conditions, if a page shows them.
    """

    table: str
    method: str
    seed: int
    overrides: Sequence[str]
    metrics: dict[str, float]
    environments: Sequence[dict[str, Any]]
    ended: float
    samples: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, eq=False)
class RecordedRun(Run):
    """A run of which only the record is available."""

    kept: Sequence[dict[str, Any]] = ()

    def samples(self, row: str) -> list[dict[str, Any]]:
        return list(self.kept)


class Runs:
    """Finished runs, from the folder of the runs or from the file with their records.

    Args:
        folder: absolute path of the folder of all runs.
        file: path of the file with the records.
        with_samples: tables whose samples are kept; texts of others may not be ours to publish.
    """

    def __init__(self, folder: Path, file: Path, with_samples: Sequence[str] = ()) -> None:
        self._folder, self._file, self._with_samples = folder, file, with_samples
        records = [Record(**line) for line in read_lines(file)]
        self._records = {(r.table, r.method, r.seed): r for r in records}

    def here(self, table: str, job: Job) -> Run | None:
        """Return the finished run in its folder; unlike ``seed_tables.finished``, it moves nothing."""
        try:
            run = read_run(job.place(self._folder / table))
        except UserError:
            return None
        if not run.is_finished or not made_by(run, job.lines):
            return None
        return replace(run, metrics=_measured(run))

    def done(self, table: str, job: Job) -> Run | None:
        """Return a job's finished run, or its record; a run with other overrides does not count."""
        if run := self.here(table, job):
            return run
        record = self._records.get((table, job.name, job.seed))
        if record is None or list(record.overrides) != self._portable(job):
            return None
        return RecordedRun(
            folder=job.place(self._folder / table),
            config={},
            metrics=record.metrics,
            environments=tuple(record.environments),
            ended=record.ended,
            kept=record.samples,
        )

    def add(self, table: str, job: Job) -> None:
        """Record a job's run, if it has finished."""
        run = self.here(table, job)
        if run is None:
            return
        samples = run.samples("final")[:_SAMPLES] if table in self._with_samples else []
        self._records[table, job.name, job.seed] = Record(
            table=table,
            method=job.name,
            seed=job.seed,
            overrides=self._portable(job),
            metrics={name: float(f"{value:.6g}") for name, value in run.metrics.items()},
            environments=[{"git": part["git"]} for part in run.environments if "git" in part],
            ended=round(run.ended),
            samples=[{name: row[name] for name in _FIELDS if name in row} for row in samples],
        )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_lines(self._file, (asdict(self._records[key]) for key in sorted(self._records)))

    def _portable(self, job: Job) -> list[str]:
        return [line.replace(str(self._folder), "{folder}") for line in job.lines]


def _measured(run: Run) -> dict[str, float]:
    """Return the run's metrics, plus the CPU time of training alone."""
    seconds = [line.get("train/cpu_seconds") for line in read_metrics(run.folder / "metrics.jsonl")]
    known = [value for value in seconds if value is not None]
    return {**run.metrics, **({TRAINING_MINUTES: sum(known) / 60} if known else {})}
