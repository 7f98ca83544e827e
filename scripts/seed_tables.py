"""Runs over methods and seeds in fixed folders, and Markdown tables of their means, for pages in docs/.

    jobs = [Job("gflownet", ["task=arithmetic"], seed) for seed in (0, 1, 2)]
    runs = dict(run_all(jobs, ROOT / "outputs" / "mine", at_once=2))
    lines = seed_table(runs, {"vote, 3 operands": "final/vote_accuracy/3_operands"})
    write_block(ROOT / "docs" / "mine.md", "accuracy", lines)

Each run is a separate process of ``python -m gfn_runner``, in ``<folder>/<name>/seed<n>``. Runs that finished
there with the same overrides are not repeated, interrupted ones are resumed from their checkpoint, and failed
ones are retried, so a script may be started any number of times.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from scipy import stats

from gfn_runner.errors import UserError
from gfn_runner.report.names import is_share
from gfn_runner.report.runs import Run, read_run
from gfn_runner.runtime.environment import threads_per_process
from gfn_runner.runtime.overrides import kept_overrides

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """A run to execute.

    Attributes:
        name: name of the method, which has one run per seed; also the name of its folder.
        overrides: command-line overrides, without the seed.
        seed: seed of the run.
    """

    name: str
    overrides: Sequence[str]
    seed: int

    @property
    def lines(self) -> list[str]:
        return [*self.overrides, f"seed={self.seed}"]

    def place(self, folder: Path) -> Path:
        """Return the folder of the run."""
        return folder / slug(self.name) / f"seed{self.seed}"


def options(doc: str, folder: str, write: str, *, jobs: int = 2) -> argparse.ArgumentParser:
    """Create a parser with ``--seeds``, ``--folder``, ``--write`` and ``--jobs``, common to these scripts.

    Args:
        doc: docstring of the script; its first line becomes the help text.
        folder: folder of the runs, below ``outputs/``.
        write: page, or folder of pages, below ``docs/``.
        jobs: default number of runs at a time.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / folder)
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / write)
    parser.add_argument(
        "--jobs", type=int, default=jobs, help="runs at a time; they share the cores"
    )
    return parser


def slug(name: str) -> str:
    """Replace characters that are unsafe in paths or in Hydra's overrides, such as quotes and commas."""
    return re.sub(r"[^\w-]+", "_", name)


# -- running --------------------------------------------------------------------------------------


def run_all(
    jobs: Sequence[Job], folder: Path, *, at_once: int = 1
) -> Iterator[tuple[str, list[Run]]]:
    """Execute all jobs; a failing job is reported, and the others continue.

    Args:
        jobs: all jobs of a name must be consecutive.
        folder: parent folder of the runs.
        at_once: runs at a time; they share the cores.

    Yields:
        Each name with its finished runs, as soon as its last run has ended.
    """
    threads = threads_per_process(at_once)
    with ThreadPoolExecutor(at_once) as pool:
        ended = pool.map(lambda job: run_once(job, folder, threads), jobs)
        pairs = zip(jobs, ended, strict=True)
        for name, own in groupby(pairs, key=lambda pair: pair[0].name):
            yield name, [run for _, run in own if run is not None]


def run_once(job: Job, folder: Path, threads: int) -> Run | None:
    """Return the finished run of a job, executing it if necessary; ``None`` if it fails.

    The number of threads is not an override: with other cores or load, it is still the same run. The
    output of the program is appended to ``seed<n>.log`` next to the run's folder.
    """
    place = job.place(folder)
    if run := finished(place, job.lines):
        print(f"{place} is finished already, at commit {', '.join(run.commits)}", flush=True)
        return run
    place.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gfn_runner", *job.lines]
    command += ["resume=auto", f"hydra.run.dir={short(place)}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    log, began = place.with_suffix(".log"), time.time()
    print(f"{place} begins: {shlex.join(job.lines)}", flush=True)
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    end = f"FAILED with exit code {code}, see {log}" if code else "ended"
    print(f"{place} {end}, {(time.time() - began) / 60:.1f} minutes", flush=True)
    return finished(place, job.lines)


def finished(place: Path, lines: Sequence[str]) -> Run | None:
    """Return the finished run with these overrides; ``None`` if it has not finished.

    A run with other overrides is moved to ``aside/`` and never deleted, so that results are not attributed to
    another command. So is a folder without a run's config.
    """
    try:
        run = read_run(place)
        if made_by(run, lines):
            return run if run.is_finished else None
    except UserError:
        pass  # no run, or it failed before writing its config
    if place.exists():
        aside = place.parent / "aside"
        aside.mkdir(exist_ok=True)
        place.rename(aside / f"{place.name}-{time.time_ns()}")
    return None


def made_by(run: Run, lines: Sequence[str]) -> bool:
    """Return whether a run was started with these overrides."""
    # A run always records its task, even if an experiment selected it.
    task = next((o.removeprefix("task=") for o in run.overrides if o.startswith("task=")), "")
    return set(map(_absolute, run.overrides)) == set(map(_absolute, kept_overrides(lines, task)))


def _absolute(line: str) -> str:
    """Return an override as a run saves it: local paths, relative to ``ROOT``, become absolute."""
    key, _, value = line.partition("=")
    bare = value.strip("'")
    return f"{key}={ROOT / bare}" if bare and (ROOT / bare).exists() else line


def short(path: Path | str) -> str:
    """Return the path relative to the repository if inside, so that pages contain no home folder."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


# -- tables ---------------------------------------------------------------------------------------


def seed_table(rows: Mapping[str, Sequence[Run]], columns: Mapping[str, str]) -> list[str]:
    """Return the lines of a Markdown table with means over seeds.

    Args:
        rows: row labels to runs, one per seed.
        columns: titles to names in ``metrics.json``.
    """
    cells = [
        [name, *(cell(metric, runs) for metric in columns.values())] for name, runs in rows.items()
    ]
    return markdown(["", *columns], cells)


def cell(metric: str, runs: Sequence[Run]) -> str:
    """Format mean ± half the 95 % t-interval of a metric, shares in %; empty if any run lacks it.

    Args:
        metric: name in ``metrics.json``, including the row.
        runs: one run per seed.
    """
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    if not values or len(values) < len(runs):
        return ""
    largest = max(map(abs, values))
    if is_share(metric.partition("/")[2]):
        return mean_interval([100 * v for v in values], digits=3 if largest < 0.01 else 1)
    return mean_interval(values, digits=5 if 1e-5 < largest < 0.1 else 2)


def mean_interval(values: Sequence[float], digits: int = 1) -> str:
    """Format mean ± half the 95 % t-interval; a single value has no interval."""
    mean = f"{fmean(values):z.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {t_margin(values):.{digits}f}"


def t_margin(values: Sequence[float]) -> float:
    """Return half the 95 % t-interval of the mean of two or more values."""
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    first, *others = (f"| {' | '.join(line)} |" for line in (header, *rows))
    return [first, "|---" * len(header) + "|", *others]


def write_block(path: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a file."""
    text = path.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marked.search(text):
        raise SystemExit(f"{path} lacks the marks <!-- {name} --> and <!-- /{name} -->")
    block = "\n".join(lines)
    path.write_text(marked.sub(lambda m: f"{m[1]}{block}\n{m[2]}", text), encoding="utf-8")
    print(f"written to {path}", flush=True)
