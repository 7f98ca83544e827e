"""Template values of a report that compares several runs, for both its HTML and its Markdown version."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfn_runner.report.equal_compute import equal_compute
from gfn_runner.report.methods import Method
from gfn_runner.report.page import Picture
from gfn_runner.report.runs import Run
from gfn_runner.report.side_by_side import sample_table
from gfn_runner.report.summary import Section, commands, notes, results, task_of
from gfn_runner.report.table import PUBLISHED, Code, Table, hundredths

_TEXT = (
    "Mean ± standard error of the mean over seeds; a single seed has no error. Shares and accuracies "
    "in %, log-probabilities and their like in nats."
)
_SAMPLES = "Single samples of the first seed; in brackets the answer, where one is known."
_EQUAL = (
    "A trained policy's strings beside one chosen out of as many from the base model (or out of the next "
    "larger measured number), and how many of these it takes for their mean over seeds to reach the "
    "policy's."
)
_PAPERS_SAMPLES = "From another model, under another R."


def report_content(
    runs: Sequence[Run],
    found: Sequence[Section],
    figures: Sequence[tuple[Sequence[Picture], Sequence[str]]],
    page: Path,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """Return the variables of ``templates/report.html`` and ``templates/report.md``.

    Args:
        figures: for each section, its pictures and the names of omitted figures with the reason.
        page: folder of the report; paths in the report are relative to it.
    """
    n = sum(run.is_finished for run in runs)
    return {
        "title": f"Report on {n} finished run{'s' if n > 1 else ''}",
        "command": shlex.join(["python", "-m", "gfn_runner.report", *arguments]),
        "text": _TEXT,
        "notes": notes(runs, found),
        "no_notes": "Nothing: every run that was given is in the table.",
        "parts": [_part(section, *own, page) for section, own in zip(found, figures, strict=True)],
    }


def _part(
    section: Section, pictures: Sequence[Picture], missing: Sequence[str], page: Path
) -> dict[str, Any]:
    """Return the template variables of one task's section."""
    # Each entry: heading, introductory text, table.
    tables = [("How each was run", "", _origins(section, page))]
    samples = sample_table(section)
    if isinstance(samples, Table):
        tables.append(("Samples for the same conditions", _SAMPLES, samples))
    else:
        missing = [*missing, f"samples for the same conditions: {samples}."]
    task = task_of(section.methods[0].runs[0])[0] if section.methods else None
    if task and (theirs := task.reference_samples()):
        rows = [(own.condition, own.label, own.text, hundredths(own.log_reward)) for own in theirs]
        header = ("condition", "method", "sample", "log R (nats)")
        tables.append(("The paper's own samples", _PAPERS_SAMPLES, Table(header, rows, False)))
    equal = equal_compute(section)
    if isinstance(equal, Table):
        tables.append(("At equal test-time compute", _EQUAL, equal))
    return {
        "name": section.name,
        "results": results(section),
        "published": f"{PUBLISHED}." if section.published else "",
        "tables": tables,
        "pictures": pictures,
        "missing": missing,
    }


def _origins(section: Section, page: Path) -> Table:
    """Tabulate commands, commits and configs; methods measured in the same runs share a row."""
    by_runs: dict[tuple[int, ...], list[Method]] = {}
    for method in section.methods:
        by_runs.setdefault(tuple(map(id, method.runs)), []).append(method)
    rows = []
    for methods in by_runs.values():
        first, labels = methods[0], "; ".join(method.label for method in methods)
        places = [os.path.relpath(run.folder / "config.yaml", page) for run in first.runs]
        commits = ", ".join(first.commits) or "unknown"
        rows.append((labels, Code(commands(first)), commits, Code(places)))
    return Table(("methods", "command", "commit", "resolved config"), rows, numeric=False)
