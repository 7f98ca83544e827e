"""The table at the end of a sweep, for the terminal and as ``sweep.md``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gfn_runner.report.table import is_share, rounded, shown_number
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.sweep_record import Job, Sweep

_STYLES = {"ok": "green", "waiting": "dim", "submitted": "dim", "running": "dim"}
_LONGEST_REASON = 300
_MINUTES = "minutes"


def show_sweep(sweep: Sweep) -> None:
    """Print the table and leave it in the sweep's folder as ``sweep.md``."""
    common = sweep.common
    title = f"sweep {' '.join(map(rounded, common))}".rstrip()
    well = sum(job.state == "ok" for job in sweep.jobs)
    summary = f"{well} of {len(sweep.jobs)} runs are ok"
    before = sum(job.state == "ok" and not job.again for job in sweep.jobs)
    summary += f" ({before} had finished before)" if before else ""
    _write_markdown(sweep, title, common, summary)
    console = Console(highlight=False)
    console.print(escape(title), soft_wrap=True, style="bold")
    _print_tables(console, sweep.jobs, common)
    for job in sweep.failures:
        why = f": {job.why[:_LONGEST_REASON]}" if job.why else ""
        console.print(f"#{job.number} {job.state}{why}", markup=False, soft_wrap=True)
    console.print(summary)
    queued = [
        job.job_id for job in sweep.jobs if job.state in ("submitted", "running") and job.job_id
    ]
    if queued:
        console.print(
            f"SLURM goes on with them; scancel {' '.join(queued)} ends them", soft_wrap=True
        )
    if sweep.failures:
        console.print(
            f"python -m gfn_runner -m resume={sweep.folder} goes on with those that are not",
            soft_wrap=True,
        )
    console.print(f"the table is in {sweep.folder / 'sweep.md'}", soft_wrap=True)


def _print_tables(console: Console, jobs: Sequence[Job], common: Sequence[str]) -> None:
    """One table; where the console is too narrow for it the metrics are in others below."""
    overrides = _overrides(jobs, common)
    short = _short_keys(overrides)
    shown = [[_renamed(line, short) for line in own] for own in overrides]
    names = _metric_names(jobs)
    rest: Sequence[str] = ()
    table = _table(jobs, names, ["\n".join(own) for own in shown])
    if _width(console, table) > console.width:
        table, rest = _table(jobs, (), [" ".join(own) for own in shown]), names
    console.print(table)
    measured = [job for job in jobs if job.metrics]
    while rest:
        n = len(rest)
        while n > 1 and _width(console, _table(measured, rest[:n])) > console.width:
            n -= 1
        console.print(_table(measured, rest[:n]))
        rest = rest[n:]
    notes = [f"{end} is {key}" for key, end in short.items()]
    notes += ["shares are in %"] if any(map(is_share, names)) else []
    if notes:
        console.print(", ".join(notes), markup=False, soft_wrap=True, style="dim")


def _width(console: Console, table: Table) -> int:
    """Columns of the terminal that the table takes if nothing in it is broken."""
    return table.__rich_measure__(console, console.options.update(max_width=10_000)).maximum


def _table(
    jobs: Sequence[Job], names: Sequence[str], overrides: Sequence[str] | None = None
) -> Table:
    """A row for each run; without ``overrides`` its number and metrics alone."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    # By default a run's folder is its number.
    folders = overrides is not None and any(job.folder != str(job.number) for job in jobs)
    if overrides is not None:
        table.add_column("overrides", overflow="fold")
        table.add_column("state", no_wrap=True)
    for name in (*names, *([_MINUTES] if overrides is not None else [])):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    if folders:
        table.add_column("folder", overflow="fold")
    for number, job in enumerate(jobs):
        cells = [str(job.number)]
        if overrides is not None:
            state = f"[{_STYLES.get(job.state, 'red')}]{job.state}[/]"
            cells += [escape(overrides[number]), state]
        cells += _numbers(job, names)
        cells += [_minutes(job)] if overrides is not None else []
        table.add_row(*cells, *([escape(job.folder)] if folders else []))
    return table


def _overrides(jobs: Sequence[Job], common: Sequence[str]) -> list[list[str]]:
    """Of each run those that differ, numbers to four significant digits: a search draws sixteen.

    Runs that would look the same keep all digits. ``sweep.json`` has the exact values.
    """
    exact = [job.beside(common) for job in jobs]
    short = [list(map(rounded, own)) for own in exact]
    repeated = Counter(map(tuple, short))
    return [
        own if repeated[tuple(own)] == 1 else digits
        for own, digits in zip(short, exact, strict=True)
    ]


def _short_keys(runs: Sequence[Sequence[str]]) -> dict[str, str]:
    """The last parts of those keys that have several, where no two keys share it."""
    keys = dict.fromkeys(line.partition("=")[0].lstrip("+~") for own in runs for line in own)
    ends = {key: re.split(r"[./]", key.partition("@")[0])[-1] for key in keys}
    counts = Counter(ends.values())
    return {key: end for key, end in ends.items() if end != key and counts[end] == 1}


def _renamed(line: str, short: dict[str, str]) -> str:
    key, equals, value = line.partition("=")
    name = key.lstrip("+~")
    return key[: len(key) - len(name)] + short.get(name, name) + equals + value


def _metric_names(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job.metrics))


def _numbers(job: Job, names: Sequence[str]) -> list[str]:
    return [shown_number(name, job.metrics[name]) if name in job.metrics else "" for name in names]


def _minutes(job: Job) -> str:
    return "" if job.minutes is None else f"{job.minutes:.1f}"


def _write_markdown(sweep: Sweep, title: str, common: Sequence[str], summary: str) -> None:
    names = _metric_names(sweep.jobs)
    header = ["#", "overrides", "state", *names, _MINUTES, "folder", "why"]
    rows = [
        [
            str(job.number),
            " ".join(own),
            job.state,
            *_numbers(job, names),
            _minutes(job),
            job.folder,
            job.why[:_LONGEST_REASON],
        ]
        for job, own in zip(sweep.jobs, _overrides(sweep.jobs, common), strict=True)
    ]
    lines = [f"# {title}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows)]
    write_atomically(sweep.folder / "sweep.md", "\n".join([*lines, "", summary]) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
