"""The table at the end of a sweep, for the terminal and as ``sweep.md``; starts and judges nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gfn_runner.files import write_whole
from gfn_runner.report.table import shown_number
from gfn_runner.sweeps.record import Job, Sweep

_STYLES = {"ok": "green", "waiting": "dim", "submitted": "dim", "running": "dim"}
_LONGEST_REASON = 300


def show_sweep(sweep: Sweep) -> None:
    """Print the table and leave it in the sweep's folder as ``sweep.md``."""
    common = sweep.common
    title = f"sweep {' '.join(common)}".rstrip()
    well = sum(job.state == "ok" for job in sweep.jobs)
    summary = f"{well} of {len(sweep.jobs)} runs are ok"
    before = sum(job.state == "ok" and not job.again for job in sweep.jobs)
    summary += f" ({before} had finished before)" if before else ""
    _write_markdown(sweep, title, common, summary)
    console = Console(highlight=False)
    console.print(escape(title), soft_wrap=True, style="bold")
    console.print(_table(sweep.jobs, common))
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


def _table(jobs: Sequence[Job], common: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    names = _metric_names(jobs)
    table.add_column("#", justify="right")
    table.add_column("overrides", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in (*names, "minutes"):
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for job in jobs:
        style = _STYLES.get(job.state, "red")
        table.add_row(
            str(job.number),
            escape("\n".join(job.beside(common))),
            f"[{style}]{job.state}[/]",
            *_numbers(job, names),
            escape(job.folder),
        )
    return table


def _metric_names(jobs: Sequence[Job]) -> list[str]:
    return list(dict.fromkeys(name for job in jobs for name in job.metrics))


def _numbers(job: Job, names: Sequence[str]) -> list[str]:
    """Cells of the metrics and of the minutes."""
    metrics = [
        shown_number(name, job.metrics[name]) if name in job.metrics else "" for name in names
    ]
    return [*metrics, "" if job.minutes is None else f"{job.minutes:.1f}"]


def _write_markdown(sweep: Sweep, title: str, common: Sequence[str], summary: str) -> None:
    names = _metric_names(sweep.jobs)
    header = ["#", "overrides", "state", *names, "minutes", "folder", "why"]
    rows = [
        [
            str(job.number),
            " ".join(job.beside(common)),
            job.state,
            *_numbers(job, names),
            job.folder,
            job.why[:_LONGEST_REASON],
        ]
        for job in sweep.jobs
    ]
    lines = [f"# {title}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows)]
    write_whole(sweep.folder / "sweep.md", "\n".join([*lines, "", summary]) + "\n")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
