"""What a report on several runs consists of, for its HTML and its Markdown template."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfn_runner.data.samples import ReferenceRow
from gfn_runner.report.equal_compute import equal_compute
from gfn_runner.report.methods import Method
from gfn_runner.report.names import column_title
from gfn_runner.report.page import Code, Picture, Table
from gfn_runner.report.runs import Run
from gfn_runner.report.side_by_side import sample_table
from gfn_runner.report.summary import (
    Section,
    cell,
    commands,
    notes,
    published_columns,
    published_header,
    task_of,
)
from gfn_runner.report.table import PUBLISHED, hundredths, shown_number

_TEXT = (
    "Mean ± standard error of the mean over seeds; a single seed has no error. Shares and accuracies "
    "in %, log-probabilities and their like in nats."
)
_SAMPLES = (
    "Single samples of the first seed; in brackets the answer, where one is known. Judged by the first "
    "of the task's metrics that speaks of a single string, if there is one."
)
_EQUAL = (
    "A trained policy's strings beside one chosen out of as many of the base model's (or out of the next "
    "larger number that was measured), and how many of these it takes until their mean over seeds is not "
    "below the policy's."
)
_PAPERS_SAMPLES = "† The paper's own, by another model under another R:"


def report_content(
    runs: Sequence[Run],
    found: Sequence[Section],
    figures: Sequence[tuple[Sequence[Picture], Sequence[str]]],
    page: Path,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """The values of ``templates/report.html`` and ``report.md``.

    Args:
        figures: of each section its pictures, and the figures left out with the reason.
        page: folder that the page will lie in; paths are relative to it.
    """
    n = sum(run.status == "finished" for run in runs)
    return {
        "title": f"Report on {n} finished run{'s' if n > 1 else ''}",
        "command": shlex.join(["python", "-m", "gfn_runner.report", *arguments]),
        "text": _TEXT,
        "notes": notes(runs, found),
        "no_notes": "Nothing: every run that was given is in the table.",
        "parts": [
            section_content(section, *own, page)
            for section, own in zip(found, figures, strict=True)
        ],
    }


def section_content(
    section: Section, pictures: Sequence[Picture], missing: Sequence[str], page: Path
) -> dict[str, Any]:
    """One task's part of a report, as ``templates/section.html`` and ``report.md`` have it."""
    # Heading, text, table; and where there is more below it, a text and a table.
    tables: list[tuple[str, str, Table, tuple[str, Table] | None]] = [
        ("How each was run", "", _origins(section, page), None)
    ]
    samples = sample_table(section)
    if isinstance(samples, Table):
        papers = _published_samples(section)
        tables.append(("Samples for the same conditions", _SAMPLES, samples, papers))
    else:
        missing = [*missing, f"samples for the same conditions: {samples}."]
    equal = equal_compute(section)
    if isinstance(equal, Table):
        tables.append(("At equal test-time compute", _EQUAL, equal, None))
    return {
        "name": section.name,
        "results": results(section),
        "published": f"{PUBLISHED}." if section.published else "",
        "tables": tables,
        "pictures": pictures,
        "missing": missing,
    }


def _published_samples(section: Section) -> tuple[str, Table] | None:
    task, _ = task_of(section.methods[0].runs[0])
    found = task.reference_samples() if task else ()
    if not found:
        return None
    rows = [(s.condition, s.label, s.text, hundredths(s.log_reward)) for s in found]
    header = ("condition", "method", "sample", "log R (nats)")
    return _PAPERS_SAMPLES, Table(header, rows, numeric=False)


def results(section: Section) -> Table:
    """One row a method, one column a metric and evaluation set; the paper's numbers in a last column.

    Published rows that belong beside no method of the table come below it.
    """
    columns, theirs = section.columns, published_columns(section)
    beside = {m: section.beside.get(m) for m in section.methods}
    placed = [row for row in beside.values() if row is not None]
    empty = [""] * len(columns)
    rows = [
        [m.label, str(len(m.runs)), *(cell(m, c) for c in columns), _published(row, theirs)]
        for m, row in beside.items()
    ]
    for row in section.published:
        if row not in placed:
            own = empty if placed else [_published(row, [c]) for c in columns]
            rows.append([f"† {row.label}", "", *own, _published(row, theirs)])
    # A run that is in no mean has a row of its own.
    rows += [
        [f"{run.baseline or 'GFlowNet'}, seed {run.seed}", "", run.status, *empty]
        for run in section.unfinished
    ]
    header = ["method", "seeds", *map(column_title, columns)]
    if not placed:
        return Table(header, [row[:-1] for row in rows])
    return Table([*header, published_header(section)], rows)


def _published(row: ReferenceRow | None, columns: Sequence[str]) -> str:
    """The paper's numbers in the order of columns; a dash for one that it lacks."""
    if row is None or not any(c in row.values for c in columns):
        return ""
    return " / ".join(shown_number(c, row.values[c]) if c in row.values else "–" for c in columns)


def _origins(section: Section, page: Path) -> Table:
    """Command, commits and configs; methods that were measured in the same runs share a row."""
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
