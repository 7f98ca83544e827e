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
_TEXTS = ("overrides", "folder")  # columns that may be broken


def show_sweep(sweep: Sweep) -> None:
    """Print the table and leave it in the sweep's folder as ``sweep.md``."""
    jobs, common = sweep.jobs, sweep.common
    title = f"sweep {' '.join(map(rounded, common))}".rstrip()
    well = sum(job.state == "ok" for job in jobs)
    summary = f"{well} of {len(jobs)} runs are ok"
    before = sum(job.state == "ok" and not job.again for job in jobs)
    summary += f" ({before} had finished before)" if before else ""
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    overrides = _overrides(jobs, common)
    rows = [
        {"#": str(job.number), "overrides": " ".join(own), "state": job.state}
        | {name: shown_number(name, value) for name, value in job.metrics.items()}
        | {"minutes": "" if job.minutes is None else f"{job.minutes:.1f}", "folder": job.folder}
        | {"why": job.why[:_LONGEST_REASON]}
        for job, own in zip(jobs, overrides, strict=True)
    ]
    header = ["#", "overrides", "state", *names, "minutes", "folder", "why"]
    lines = [header, ["---"] * len(header), *([row.get(n, "") for n in header] for row in rows)]
    table = "\n".join(f"| {' | '.join(map(_markdown_cell, cells))} |" for cells in lines)
    write_atomically(sweep.folder / "sweep.md", f"# {title}\n\n{table}\n\n{summary}\n")
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(title), style="bold")
    short = _short_keys(overrides)
    for row, own in zip(rows, overrides, strict=True):
        row["overrides"] = "\n".join(_renamed(line, short) for line in own)
    _print_tables(console, rows, names)
    notes = [f"{end} is {key}" for key, end in short.items()]
    notes += ["shares are in %"] if any(map(is_share, names)) else []
    if notes:
        console.print(", ".join(notes), markup=False, style="dim")
    for job in sweep.failures:
        why = f": {job.why[:_LONGEST_REASON]}" if job.why else ""
        console.print(f"#{job.number} {job.state}{why}", markup=False)
    console.print(summary)
    queued = [j.job_id for j in jobs if j.state in ("submitted", "running") and j.job_id]
    if queued:
        console.print(f"SLURM goes on with them; scancel {' '.join(queued)} ends them")
    if sweep.failures:
        again = f"python -m gfn_runner -m resume={sweep.folder}"
        console.print(f"{again} goes on with those that are not", markup=False)
    console.print(f"the table is in {sweep.folder / 'sweep.md'}", markup=False)


def _markdown_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _print_tables(console: Console, rows: Sequence[dict[str, str]], names: Sequence[str]) -> None:
    """One table; where the console is too narrow for it the metrics are in others below."""
    # By default a run's folder is its number.
    folder = ["folder"] if any(row["folder"] != row["#"] for row in rows) else []
    whole = _table(rows, ["#", "overrides", "state", *names, "minutes", *folder])
    if _fits(console, whole):
        console.print(whole, soft_wrap=False)
        return
    brief = [row | {"overrides": row["overrides"].replace("\n", " ")} for row in rows]
    own = _table(brief, ["#", "overrides", "state", "minutes", *folder])
    console.print(own, soft_wrap=False)
    measured = [row for row in rows if row.keys() & set(names)]
    rest = list(names)
    while rest:
        n = len(rest)
        while n > 1 and not _fits(console, _table(measured, ["#", *rest[:n]])):
            n -= 1
        console.print(_table(measured, ["#", *rest[:n]]), soft_wrap=False)
        rest = rest[n:]


def _fits(console: Console, table: Table) -> bool:
    """Whether the console is wide enough to break nothing in the table."""
    unbroken = console.options.update(max_width=10_000)
    return table.__rich_measure__(console, unbroken).maximum <= console.width


def _table(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        is_left = name in (*_TEXTS, "state")
        table.add_column(
            name.replace("_", "\n"),
            justify="left" if is_left else "right",
            no_wrap=name not in _TEXTS,
            overflow="fold",
        )
    for row in rows:
        cells = {name: escape(text) for name, text in row.items()}
        cells["state"] = f"[{_STYLES.get(row['state'], 'red')}]{row['state']}[/]"
        table.add_row(*(cells.get(name, "") for name in columns))
    return table


def _overrides(jobs: Sequence[Job], common: Sequence[str]) -> list[list[str]]:
    """Of each run those that differ, numbers to four significant digits: a search draws sixteen.

    Runs that would look the same keep all digits. ``sweep.json`` has the exact values.
    """
    exact = [job.beside(common) for job in jobs]
    short = [list(map(rounded, own)) for own in exact]
    repeated = Counter(map(tuple, short))
    pairs = zip(short, exact, strict=True)
    return [own if repeated[tuple(own)] == 1 else digits for own, digits in pairs]


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
