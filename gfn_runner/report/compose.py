"""The report's order: tables, origins, figures and notes of several runs as blocks; reads no folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gfn_runner.data.samples import ReferenceRow
from gfn_runner.report.equal_compute import equal_compute
from gfn_runner.report.methods import Method
from gfn_runner.report.names import column_title
from gfn_runner.report.pages import Block, Code, Heading, Items, Picture, Table, Text
from gfn_runner.report.runs import Run
from gfn_runner.report.side_by_side import sample_table
from gfn_runner.report.summary import (
    Section,
    cell,
    commands,
    left_out,
    origins,
    published_columns,
    published_header,
    task_of,
)
from gfn_runner.report.table import PUBLISHED, shown_number


def notes(runs: Sequence[Run], found: Sequence[Section]) -> list[str]:
    """Everything that a reader of the tables might not expect, a sentence each."""
    own = [f"{section.name}: {note}" for section in found for note in section.notes]
    return [*left_out(runs, found), *own]


def compose(
    runs: Sequence[Run],
    found: Sequence[Section],
    pictures: Sequence[tuple[Sequence[tuple[Path, str]], Sequence[str]]],
    page: Path,
    arguments: Sequence[str],
) -> list[Block]:
    """The whole page.

    Args:
        runs: all that were given, finished or not.
        found: a section a task.
        pictures: of each section its figures with captions, and those left out with the reason.
        page: folder that the page will lie in; places are told from there.
        arguments: of the command that makes the report again.
    """
    n = sum(run.status == "finished" for run in runs)
    said = notes(runs, found)
    blocks: list[Block] = [
        Heading(f"Report on {n} finished run{'s' if n > 1 else ''}", 1),
        Code([shlex.join(["python", "-m", "gfn_runner.report", *arguments])]),
        Text(
            "Mean ± standard error of the mean over seeds; a single seed has no error. Shares and "
            "accuracies in %, log-probabilities and their like in nats."
        ),
        Heading("What is not in the tables"),
        Items(said) if said else Text("Nothing: every run that was given is in the table."),
    ]
    for section, (drawn, missing) in zip(found, pictures, strict=True):
        blocks += section_blocks(section, drawn, missing, page)
    return blocks


def section_blocks(
    section: Section,
    drawn: Sequence[tuple[Path, str]],
    missing: Sequence[str],
    page: Path,
    level: int = 2,
) -> list[Block]:
    """One task's part of a report, under a heading of this level."""
    blocks: list[Block] = [Heading(section.name, level), results(section)]
    if section.published:
        blocks.append(Text(f"{PUBLISHED}."))
    blocks += [Heading("How each was run", level + 1), _origins(section, page)]
    samples = sample_table(section)
    if isinstance(samples, Table):
        blocks += [
            Heading("Samples for the same conditions", level + 1),
            Text(
                "Single samples of the first seed; in brackets the answer, where one is known. Judged by "
                "the first of the task's metrics that speaks of a single string, if there is one."
            ),
            samples,
            *_published_samples(section),
        ]
    else:
        missing = [*missing, f"samples for the same conditions: {samples}."]
    equal = equal_compute(section)
    if isinstance(equal, Table):
        blocks += [
            Heading("At equal test-time compute", level + 1),
            Text(
                "A trained policy's strings beside one chosen out of as many of the base model's (or out "
                "of the next larger number that was measured), and how many of these it takes until "
                "their mean over seeds is not below the policy's."
            ),
            equal,
        ]
    if drawn or missing:
        blocks.append(Heading("Figures", level + 1))
    blocks += [Picture(path, caption) for path, caption in drawn]
    if missing:
        blocks += [Text("Left out, for want of data:"), Items(missing)]
    return blocks


def _published_samples(section: Section) -> list[Block]:
    task, _ = task_of(section.methods[0].runs[0])
    found = task.reference_samples() if task else ()
    if not found:
        return []
    rows = [(s.condition, s.label, s.text, f"{s.log_reward:.2f}".replace("-", "−")) for s in found]
    return [
        Text("† The paper's own, by another model under another R:"),
        Table(("condition", "method", "sample", "log R (nats)"), rows, numeric=False),
    ]


def results(section: Section) -> Table:
    """One row a method, one column a metric and evaluation set; the paper's numbers in a last column.

    Published rows that belong beside no method of the table come below it.
    """
    columns, theirs = section.columns, published_columns(section)
    beside = {m: section.beside.get(m) for m in section.methods}
    placed = [row for row in beside.values() if row is not None]
    rows = [
        (
            m.label,
            str(len(m.runs)),
            *(cell(m, column) for column in columns),
            *([_published(row, theirs)] if placed else []),
        )
        for m, row in beside.items()
    ]
    rows += [
        (
            f"† {row.label}",
            "",
            *(_published(row, [c]) if not placed else "" for c in columns),
            *([_published(row, theirs)] if placed else []),
        )
        for row in section.published
        if row not in placed
    ]
    rows += [_unfinished(run, len(columns) + bool(placed)) for run in section.unfinished]
    last = [published_header(section)] if placed else []
    return Table(("method", "seeds", *map(column_title, columns), *last), rows)


def _unfinished(run: Run, width: int) -> tuple[str, ...]:
    """The row of a run that is in no mean."""
    name = f"{run.baseline or 'GFlowNet'}, seed {run.seed}"
    return (name, "", *(run.status if at == 0 else "" for at in range(width)))


def _published(row: ReferenceRow | None, columns: Sequence[str]) -> str:
    """The paper's numbers in the order of columns; a dash for one that it lacks."""
    if row is None or not any(c in row.values for c in columns):
        return ""
    return " / ".join(shown_number(c, row.values[c]) if c in row.values else "–" for c in columns)


def _origins(section: Section, page: Path) -> Table:
    """Command, commits and configs; methods that were measured in the same runs share a row."""
    together: dict[tuple[int, ...], list[Method]] = {}
    for method in section.methods:
        together.setdefault(tuple(map(id, method.runs)), []).append(method)
    rows = []
    for methods in together.values():
        commits, places = origins(methods[0], page)
        labels = "; ".join(method.label for method in methods)
        rows.append((labels, Code(commands(methods[0])), commits, Code(places)))
    return Table(("methods", "command", "commit", "resolved config"), rows, numeric=False)
