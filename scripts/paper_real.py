"""Reproduce the paper's tables on SmolLM2-135M with one command that can be interrupted and repeated.

    python scripts/paper_real.py --list                             # runs, done or not, with estimated minutes
    python scripts/paper_real.py --data FOLDER                      # all tables, up to 20 hours on two cores
    python scripts/paper_real.py --data FOLDER --table infilling
    python scripts/paper_real.py --data FOLDER --jobs 2             # two runs at a time, of a core each
    python scripts/paper_real.py --report-only                      # the page of what is finished

Runs are in outputs/paper_real/<table>/<method>/seed<n>, all first seeds first. Runs that finished with the
same overrides are not repeated, interrupted ones are resumed from their checkpoint, and failed ones are
retried. After each run, the page docs/results/smollm2/README.md is rewritten, and the run's numbers are added
to runs.jsonl next to it: with that file, another machine executes only the missing runs.

FOLDER (or the environment variable GFN_PAPER_DATA) contains the data, see docs/smollm2.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import Lock

from paper_real_data import prepare
from paper_real_page import page
from paper_real_tables import TABLES, jobs_of
from run_records import FILE, Runs
from seed_tables import ROOT, Job, run_once

from gfn_runner.lm.model_folders import SMOLLM2_FOLDER
from gfn_runner.runtime.environment import threads_per_process
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.terminal import prepare_output

VARIABLE = "GFN_PAPER_DATA"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help=f"folder of the data; default: ${VARIABLE}")
    parser.add_argument("--table", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "paper_real")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "results" / "smollm2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument(
        "--list", action="store_true", help="list the runs, done or not; run nothing"
    )
    parser.add_argument("--report-only", action="store_true", help="only report on finished runs")
    arguments = parser.parse_args(given)
    folder = arguments.folder.resolve()
    jobs = in_order(arguments.table, folder)
    # Table E.4 shows samples.
    runs = Runs(folder, arguments.write / FILE, with_samples=["arithmetic"])
    if arguments.list:
        print("\n".join(listed(jobs, runs)))
        return
    if not arguments.report_only:
        source = arguments.data or os.environ.get(VARIABLE)
        if not source:
            raise SystemExit(
                f"no data: --data FOLDER, or the environment variable {VARIABLE}, names them"
            )
        if not SMOLLM2_FOLDER.is_dir():
            raise SystemExit(f"{SMOLLM2_FOLDER} is missing: make smollm2")
        files = dict.fromkeys(f for table in arguments.table for f in TABLES[table].data.values())
        prepare(Path(source).expanduser(), files, folder / "data")
        run_all(jobs, runs, folder, arguments.write, arguments.jobs)
    write(folder, runs, arguments.write)
    print(f"written to {arguments.write / 'README.md'}")


def run_all(
    jobs: Sequence[tuple[str, Job]], runs: Runs, folder: Path, where: Path, at_once: int
) -> None:
    """Execute the missing runs; those of one table and seed, which may depend on each other, in order."""
    lock, threads = Lock(), threads_per_process(at_once)
    wanted = [(t, j) for t, j in jobs if not runs.done(t, j) or _is_read(t, j, jobs, runs, folder)]

    def make(group: Sequence[tuple[str, Job]]) -> None:
        for table, job in group:
            run_once(job, folder / table, threads)
            with lock:
                runs.add(table, job)
                write(folder, runs, where)

    groups = [list(own) for _, own in groupby(wanted, key=lambda pair: (pair[0], pair[1].seed))]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(make, groups))


def _is_read(
    table: str, job: Job, jobs: Sequence[tuple[str, Job]], runs: Runs, folder: Path
) -> bool:
    """Return whether an unfinished run reads this run's folder, of which only the record exists."""
    place = str(job.place(folder / table))
    return any(not runs.done(t, j) and any(place in line for line in j.lines) for t, j in jobs)


def in_order(tables: Sequence[str], folder: Path) -> list[tuple[str, Job]]:
    """Return the runs of tables, first seeds first, so that an interrupted command covers every table."""
    jobs = [(table, job) for table in tables for job in jobs_of(table, folder)]
    return sorted(jobs, key=lambda pair: pair[1].seed)


def listed(jobs: Sequence[tuple[str, Job]], runs: Runs) -> list[str]:
    """Return a line for each run, and the remaining time."""
    lines, left = [], 0
    for table, job in jobs:
        minutes = TABLES[table].methods[job.name].minutes
        ended = runs.done(table, job) is not None
        left += 0 if ended else minutes
        state = "done" if ended else f"not run, about {minutes} minutes"
        lines.append(f"{table:16} {job.name:16} seed {job.seed}  {state}")
    return [*lines, f"left: {left} minutes ({left / 60:.1f} hours) on two quiet cores"]


def write(folder: Path, runs: Runs, where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    write_atomically(where / "README.md", page(folder, runs))


if __name__ == "__main__":
    prepare_output()
    main()
