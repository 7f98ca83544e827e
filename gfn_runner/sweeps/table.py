"""The table at the end of a sweep, printed on the terminal and written to ``sweep.md``."""

from __future__ import annotations

from rich.console import Console

from gfn_runner.report.sweep_runs import read_sweep, sweep_table
from gfn_runner.report.table import markdown, plain, print_table, rounded
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.sweep_record import Sweep

_LONGEST_REASON = 300


def show_sweep(sweep: Sweep) -> None:
    """Print the table and write it to ``sweep.md`` in the sweep's folder."""
    jobs = sweep.jobs
    table = sweep_table(read_sweep(sweep.folder, record=sweep))
    title = f"sweep {' '.join(map(rounded, sweep.common))}".rstrip()
    before = sum(job.state == "ok" and not job.again for job in jobs)
    summary = f"{len(jobs) - len(sweep.failures)} of {len(jobs)} runs are ok"
    summary += f" ({before} had finished before)" if before else ""
    text = f"# {plain(title)}\n\n{markdown(table)}\n\n{summary}\n"
    write_atomically(sweep.folder / "sweep.md", text)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(title, style="bold")
    # The reasons of failures are printed below the table.
    shown = [at for at, title in enumerate(table.header) if title != "why"]
    print_table(console, table.columns(shown))
    for job in sweep.failures:
        console.print(
            f"#{job.number} {job.state}{': ' if job.why else ''}{job.why[:_LONGEST_REASON]}"
        )
    console.print(summary)
    queued = [j.job_id for j in jobs if j.state in ("submitted", "running") and j.job_id]
    if queued:
        console.print(f"still in SLURM's queue; scancel {' '.join(queued)} cancels them")
    if sweep.failures:
        console.print(f"to continue the others: python -m gfn_runner -m resume={sweep.folder}")
    console.print(f"the table is in {sweep.folder / 'sweep.md'}")
