"""Pages made afterwards: of each run that is found below folders, and of the sweeps they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gfn_runner.errors import Problem, UserError
from gfn_runner.report.run_page import write_run_page
from gfn_runner.report.runs import find_runs
from gfn_runner.report.sweep_jobs import SweepJobs, is_sweep
from gfn_runner.report.sweep_page import write_sweep_page


def write_pages(given: Sequence[str]) -> list[Path]:
    """Write ``report.html`` into every run's folder, and into those of sweeps.

    A sweep is a folder that Hydra has made for one; and a given folder with runs right below it.

    Raises:
        UserError: with every folder without a run and every run that cannot be read; the pages of the
            others are written.
    """
    written: list[Path] = []
    problems: list[Problem] = []

    def write(folder: Path, how: Callable[[Path], Path]) -> None:
        try:
            written.append(how(folder))
        except UserError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(Problem(str(folder), f"its page cannot be written ({error})"))

    folders = _folders(given)
    for folder in folders:
        write(folder, write_run_page)
    asked = {Path(text).resolve() for text in given}
    parents = dict.fromkeys(folder.parent for folder in folders)
    sweeps = [p for p in parents if is_sweep(p) or p.resolve() in asked]
    sweeps += [Path(text) for text in given if is_sweep(Path(text)) and Path(text) not in sweeps]
    for folder in sweeps:
        write(folder, lambda sweep: write_sweep_page(SweepJobs(sweep), whole=True))
    if problems:
        raise UserError(problems)
    return written


def _folders(given: Sequence[str]) -> list[Path]:
    """Of runs; a sweep may have none as long as all its jobs have failed before they wrote a config."""
    try:
        return find_runs(given)
    except UserError:
        if all(is_sweep(Path(text)) for text in given):
            return []
        raise
