"""One table of finished runs per task: means over seeds, and notes on what was left out."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gfn_runner.data.samples import ReferenceRow
from gfn_runner.data.task import Task
from gfn_runner.errors import UserError
from gfn_runner.report.methods import Method, methods_of
from gfn_runner.report.names import column_title, is_share
from gfn_runner.report.runs import Run
from gfn_runner.report.table import Table, in_order, published_rows, shown_number
from gfn_runner.runtime.overrides import by_itself, config_flags, is_of_sweep
from gfn_runner.runtime.targets import instantiate

_MOST_NAMED, _LOG_LINES = 5, 5
_BESIDE_HEADLINE = ("log_reward", "diversity", "phi_spread")


@dataclass(frozen=True, eq=False)
class Section:
    """One task's section of the report.

    Attributes:
        columns: ``<metric>/<evaluation set>``.
        headline: headline metrics of the task.
        published: rows reported in the paper, in the metric's own unit; for another model.
        unfinished: runs of the task that belong to none of the methods.
    """

    name: str
    methods: tuple[Method, ...]
    columns: tuple[str, ...]
    headline: tuple[str, ...]
    published: tuple[ReferenceRow, ...]
    notes: tuple[str, ...]
    unfinished: tuple[Run, ...] = ()


def sections(runs: Sequence[Run], metrics: Sequence[str] = ()) -> list[Section]:
    """Group finished runs into one section per task.

    Args:
        runs: any runs; unfinished ones enter no mean but are listed by :func:`notes`.
        metrics: columns, without evaluation sets; if empty, the task's headline metrics and a few more.

    Raises:
        UserError: if no run has a metric of that name.
    """
    _refuse_unknown(runs, metrics)
    targets = sorted({run.task for run in runs if run.is_finished})
    found = {t: _section(t, [run for run in runs if run.task == t], metrics) for t in targets}
    names = [section.name for section in found.values()]
    # Two classes may have the same name, and files are named after it.
    return [
        replace(section, name=target) if names.count(section.name) > 1 else section
        for target, section in found.items()
    ]


def notes(runs: Sequence[Run], found: Sequence[Section]) -> list[str]:
    """Return everything a reader of the tables might not expect, one sentence each."""
    said = []
    if len(found) > 1:
        names = ", ".join(section.name for section in found)
        said.append(f"The runs cover {len(found)} tasks ({names}), one section each.")
    for run in runs:
        if not run.is_finished:
            said.append(f"{run.folder}: {run.state}.")
            said += [f"{run.folder}, run.log: {line}" for line in run.log[-_LOG_LINES:]]
    return said + [f"{section.name}: {note}" for section in found for note in section.notes]


def results(section: Section) -> Table:
    """Tabulate methods (rows) by metric and evaluation set (columns), followed by the paper's rows."""
    rows = [
        [method.label, str(len(method.runs)), *(cell(method, column) for column in section.columns)]
        for method in section.methods
    ]
    published = published_rows(section.published, section.columns)
    rows += [[label, "", *cells] for label, *cells in published]
    # A run that enters no mean has its own row.
    rows += [
        [f"{run.baseline or 'GFlowNet'}, seed {run.seed}", "", run.state.name]
        + [""] * (len(section.columns) - 1)
        for run in section.unfinished
    ]
    return Table(["method", "seeds", *map(column_title, section.columns)], rows)


def cell(method: Method, column: str) -> str:
    """Format mean ± standard error over seeds, with the number of seeds if some lack the metric."""
    values = method.values(column)
    if not values:
        return ""
    text = spread(column, values)
    if len(values) < len(method.runs):
        text += f" ({len(values)} of {len(method.runs)} seeds)"
    return text


_NOTHING, _ROUNDING = 1e-12, 1e-6


def spread(column: str, values: Sequence[float]) -> str:
    """Format mean ± standard error, to two significant digits of the error; a single value has no error."""
    mean, error = statistics.fmean(values), standard_error(values)
    if error <= max(_NOTHING, _ROUNDING * abs(mean)):
        # Treat seeds that differ only in the last bits of fp32 as equal, and 1e-17 as 0.
        mean = mean if abs(mean) > _NOTHING else 0.0
        return shown_number(column, mean)
    if is_share(column):
        digits = max(1, _decimals(100 * error, 2))
        return f"{100 * mean:.{digits}f} ± {100 * error:.{digits}f}"
    # Four digits of the mean are enough, however similar the seeds are.
    digits = max(0, min(_decimals(error, 2), _decimals(mean, 4) if mean else 9))
    shown = f"{error:.{digits}f}"
    whole = f"{mean:.{digits}f}".replace("-", "−")
    return f"{whole} ± {shown if float(shown) else f'{error:.1g}'}"


def _decimals(value: float, digits: int) -> int:
    """Return the number of decimal places that show that many significant digits."""
    return digits - 1 - math.floor(math.log10(abs(value)))


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean: sample standard deviation / √n; 0 for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def commands(method: Method) -> list[str]:
    """Return the command lines of the method's runs, merging seeds that differ in nothing else."""
    seeds: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for run in method.runs:
        # A run always has its task as override, so without overrides the file is missing.
        lines_of_run = tuple(line for line in run.overrides if not line.startswith("seed="))
        flags = tuple(config_flags(run.folder))
        seeds.setdefault((flags, lines_of_run), []).append(run.seed)
    lines = []
    for (flags, overrides), own in seeds.items():
        if not overrides:
            lines.append(f"unknown: no overrides.yaml for seed {', '.join(map(str, own))}")
            continue
        if len(own) > 1 and not is_of_sweep(overrides):
            words = f"{shlex.join(('-m', *flags, *overrides))} seed={','.join(map(str, own))}"
            lines.append(f"python -m gfn_runner {words}")
        else:  # with -m, the command would repeat the whole sweep
            words = shlex.join((*flags, *by_itself(overrides)))
            lines += [f"python -m gfn_runner {words} seed={seed}" for seed in own]
    return lines


def _refuse_unknown(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    known = {
        name.split("/")[1]
        for run in runs
        for name in run.metrics
        if "/" in name and name.partition("/")[0] in run.rows
    }
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise UserError.one(
            "--metrics", f"no run has {', '.join(unknown)}", ", ".join(sorted(known)) or "none"
        )


def _section(target: str, runs: Sequence[Run], metrics: Sequence[str]) -> Section:
    finished = [run for run in runs if run.is_finished]
    task, problem = task_of(finished[-1])
    methods = methods_of(finished)
    headline = task.headline if task else ()
    wanted = metrics or dict.fromkeys((*headline, *_BESIDE_HEADLINE))
    columns = in_order(dict.fromkeys(name for m in methods for name in m.names), wanted)
    shown = [m for m in methods if any(m.values(column) for column in columns)]
    notes = [problem] if problem else []
    notes += [
        f"{m.label}: has none of the table's metrics, so it has no row."
        for m in methods
        if m not in shown
    ]
    notes += _notes(shown, columns)
    # A task's settings may add rows (for several numbers of examples, say).
    tasks = [task_of(method.runs[0])[0] for method in shown]
    published = [row for own in tasks if own for row in own.reference_rows()]
    return Section(
        name=task.name if task else target.rpartition(".")[2],
        methods=tuple(shown),
        columns=tuple(columns),
        headline=headline,
        published=tuple(
            row
            for at, row in enumerate(published)
            if row.values.keys() & set(columns) and row not in published[:at]
        ),
        notes=tuple(notes),
        unfinished=tuple(run for run in runs if run not in finished),
    )


def task_of(run: Run) -> tuple[Task | None, str]:
    """Instantiate the task of a run's config; if that fails, return ``None`` and the reason."""
    try:
        return instantiate("task", run.config["task"], Task), ""
    except UserError as error:
        reason = str(error.problems[0])
        return None, (
            f"The task {run.task} cannot be built from {run.folder}/config.yaml ({reason}): no published "
            "rows, and columns by name only."
        )


def _notes(methods: Sequence[Method], columns: Sequence[str]) -> list[str]:
    """Collect notes on the methods, each note once with all methods to which it applies."""
    by_text: dict[str, list[str]] = {}
    for method in methods:
        for text in _of_method(method, columns):
            by_text.setdefault(text, []).append(method.label)
    notes = [f"{'; '.join(labels)}: {text}" for text, labels in by_text.items()]
    notes += _conditions(methods)
    runs = dict.fromkeys(run for method in methods for run in method.runs)
    if changed := [str(run.folder) for run in runs if "-changed" in "".join(run.commits)]:
        notes.append(f"Files were changed since the commit in {', '.join(changed)}.")
    return notes


def _conditions(methods: Sequence[Method]) -> list[str]:
    """Return a note on the methods that were evaluated on fewer conditions than others."""
    labels: dict[int, list[str]] = {}
    for method in methods:
        sizes = Counter(record.get("group") for record in method.runs[0].samples(method.row))
        if sizes:
            labels.setdefault(max(sizes.values()), []).append(method.label)
    if len(labels) < 2:
        return []
    sizes_text = "; ".join(
        f"{n} of a set: {_some(labels[n])}" for n in sorted(labels, reverse=True)
    )
    return [
        f"Not all methods were measured on the same conditions. {sizes_text}. The smaller sets are the "
        "first conditions of the larger ones; the error over seeds does not cover this choice."
    ]


def _some(labels: Sequence[str]) -> str:
    if len(labels) <= _MOST_NAMED:
        return ", ".join(labels)
    return f"{', '.join(labels[: _MOST_NAMED - 1])} and {len(labels) - _MOST_NAMED + 1} more"


def _of_method(method: Method, columns: Sequence[str]) -> list[str]:
    notes = []
    if method.dropped:
        others = ", ".join(f"{run.folder} (seed {run.seed})" for run in method.dropped)
        notes.append(f"measured more than once; not used: {others}.")
    if len(method.commits) > 1:
        notes.append(f"runs of different commits are averaged, {', '.join(method.commits)}.")
    for column in columns:
        missing = [run for run in method.runs if f"{method.row}/{column}" not in run.metrics]
        if 0 < len(missing) < len(method.runs):
            seeds = ", ".join(str(run.seed) for run in missing)
            notes.append(f"no {column} for seed {seeds}; the others are averaged.")
    return notes
