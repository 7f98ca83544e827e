"""A sweep's page: a table of its runs, their curves together, and a comparison of the finished ones."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from gfn_runner.errors import UserError
from gfn_runner.report.charts import COLORS, Curve
from gfn_runner.report.compose import results, section_blocks
from gfn_runner.report.history import BEHAVIOURS, History
from gfn_runner.report.names import column_title, is_share, name_of
from gfn_runner.report.pages import (
    Block,
    Code,
    Heading,
    HtmlBlock,
    Items,
    Legend,
    Link,
    Live,
    Panel,
    Panels,
    Table,
    Text,
)
from gfn_runner.report.panels import evaluated_title, loss_title, panel
from gfn_runner.report.run_page import (
    PAGE,
    headline_of,
    refresh_of,
    task_name,
    without_data,
)
from gfn_runner.report.states import Word, duration
from gfn_runner.report.summary import left_out, sections, task_of
from gfn_runner.report.sweeps import Job, Sweep
from gfn_runner.report.table import rounded, row_labels, shown_number
from gfn_runner.report.web import html_page, write_page

# Of more methods than this the comparison is a table alone: a figure has a part for each of them.
_MOST_METHODS = 12
_MOST_COLORS = len(COLORS)
_MOST_POINTS = 60  # of a curve of training: of many runs the trend is to be seen
_NO_CURVE = "train/exploration_temperature"  # drawn anew for each batch
_TRAINING = (
    "train/log_reward", "train/phi_spread_terminal", "train/log_z_bound", "train/loss",
    "train/reward_temperature", "train/exploration_temperature", "train/buffer_size", "train/buffer_age",
    "train/seconds", "train/tokens_per_second",
)  # fmt: skip
# What the policy itself writes: hot and replayed strings are other populations.
_ON_POLICY = ("train/log_reward", "train/phi_spread_terminal")
_EVALUATED = ("log_reward", "log_likelihood", "phi_spread", "log_z_bound", "diversity")


def write_sweep_page(
    sweep: Sweep, told: Mapping[str, Word] | None = None, *, whole: bool | None = None
) -> Path:
    """Write ``report.html`` into a sweep's folder.

    Args:
        sweep: its folder; what was read of it before is not read again.
        told: states that a job's own process knows, by the job's name.
        whole: with the figures and samples of the comparison, which take seconds; ``None``: once no job
            is going on or still to come.

    Raises:
        OSError: if the page cannot be written; the one before is left.
    """
    sweep.read(told)
    whole = sweep.has_ended if whole is None else whole
    configs = [job.run.config for job in sweep.jobs if job.run]
    live = Live(None if sweep.has_ended else refresh_of(configs[0] if configs else {}), time.time())
    page = sweep.folder / PAGE
    with tempfile.TemporaryDirectory(prefix="gfn-runner-") as made:
        write_page(page, html_page([*_blocks(sweep), *_comparison(sweep, Path(made), whole)], live))
    return page


def _blocks(sweep: Sweep) -> list[Block | HtmlBlock]:
    names = dict.fromkeys(task_name(job.run) for job in sweep.jobs if job.run)
    counts = Counter(job.state.word for job in sweep.jobs)
    said = f"{len(sweep.jobs)} runs: {', '.join(f'{n} {word}' for word, n in counts.items())}."
    left = [job.state.left for job in sweep.jobs if job.state.left is not None]
    if left:
        said += f" Training of those that are running ends in about {duration(max(left))}."
    places = sweep.folder.resolve().parts[-2:]
    blocks: list[Block | HtmlBlock] = [
        Heading(f"Sweep: {', '.join(names) or 'no run yet'}, {'/'.join(places)}", 1),
        Text(said),
    ]
    if sweep.command:
        blocks.append(Code([shlex.join(["python", "-m", "gfn_runner", "-m", *sweep.command])]))
    best = sweep.best()
    if best is not None:
        so_far = " so far" if sweep.searches else ""
        blocks.append(
            Text(f"Best of the search{so_far}: run {best[0]}, {_optimized(sweep)} {best[1]:.4g}.")
        )
    colors, legend = colors_of(sweep)
    blocks += [Heading("Runs"), *_table(sweep, colors)]
    drawn, missing = _panels(sweep, colors)
    blocks.append(Heading("Curves of all runs"))
    if drawn:
        said = "Point at a row of the table, or at a curve, and all of that run's curves stand out."
        blocks += [Text(said), Legend(legend), Panels(drawn)]
    if missing:
        blocks.append(without_data(missing))
    return blocks


def _optimized(sweep: Sweep) -> str:
    """The name of what a search optimises."""
    run = next((job.run for job in sweep.jobs if job.run), None)
    if run is None:
        return "value"
    task, _ = task_of(run)
    own = task and (task.optimized or next(iter(task.headline), ""))
    return str(run.config.get("optimized_metric") or own or "value")


# -- the table --------------------------------------------------------------------------------------


def _table(sweep: Sweep, colors: Mapping[str, str]) -> list[Block | HtmlBlock]:
    varied = sweep.varied()
    metrics = _headline(sweep)
    has_why = any(job.state.why for job in sweep.jobs)
    rows = []
    on_the_way = False
    for job in sweep.jobs:
        values = [_value(job, metric) for metric in metrics]
        on_the_way |= any(value.endswith("*") for value in values)
        rows.append(
            (
                Link(job.name, f"{job.name}/{PAGE}") if job.run else job.name,
                job.state.badge,
                *(rounded(job.said.get(key, "")) for key in varied),
                _steps(job),
                _minutes(job),
                *values,
                *([_brief(job.state.why)] if has_why else []),
            )
        )
    titles = [column_title(metric) for metric in metrics]
    why = ["why"] if has_why else []
    header = ("run", "state", *varied, "step", "minutes", *titles, *why)
    table = Table(header, rows, False, [job.name for job in sweep.jobs], list(colors.values()))
    said = "Metrics are means over evaluation sets" + (
        "; with a star: of the newest evaluation on the way, of fewer conditions."
        if on_the_way
        else "."
    )
    return [table, Text(said)] if metrics else [table]


def _headline(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(m for job in sweep.jobs if job.run for m in headline_of(job.run)))


def _value(job: Job, metric: str) -> str:
    """Final, or with a star the newest on the way; empty without either."""
    if job.run is not None and job.state.word == "ok":
        row = next(iter(row_labels(job.run.metrics)), "final")
        own = [v for n, v in job.run.metrics.items() if n.startswith(f"{row}/{metric}/")]
        return shown_number(metric, fmean(own)) if own else ""
    _, values = _mean_over_sets(job.history, metric)
    return f"{shown_number(metric, values[-1])}*" if values else ""


def _steps(job: Job) -> str:
    step, steps = job.state.step, job.state.steps
    if steps is None:
        return "" if step is None else str(step)
    return f"{step or 0}/{steps}"


def _minutes(job: Job) -> str:
    if job.run is not None and job.state.word == "ok" and "run/minutes" in job.run.metrics:
        return f"{job.run.metrics['run/minutes']:.1f}"
    if not job.state.begun:
        return ""
    last = time.time() if job.state.word == "running" else job.state.seen
    return f"{max(0.0, last - job.state.begun) / 60:.1f}"


def _brief(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[:most] + "…"


# -- curves -----------------------------------------------------------------------------------------


def colors_of(sweep: Sweep) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """A colour for each job, and what colours mean.

    Jobs that differ in their seed alone share one. Where there are more settings than colours that one
    can tell apart, one varied setting is shown; where none is fit for it, the order of jobs.
    """
    keys = [key for key in sweep.varied() if key != "seed"]
    choices = [keys, *sorted(([key] for key in keys), key=lambda own: -len(_values(sweep, own)))]
    for own in choices:
        values = _values(sweep, own)
        if own and 2 <= len(values) <= _MOST_COLORS:
            color = dict(zip(values, COLORS, strict=False))
            legend = [(color[v], _named(own, v)) for v in values]
            return {job.name: color[_of(job, own)] for job in sweep.jobs}, legend
    n = len(sweep.jobs)
    if n <= _MOST_COLORS:
        spots = dict(zip((job.name for job in sweep.jobs), COLORS, strict=False))
        named = [(spots[job.name], _label(job, sweep.varied())) for job in sweep.jobs]
        return spots, named
    # From red to violet.
    hues = {job.name: f"hsl({300 * i / (n - 1):.0f} 70% 42%)" for i, job in enumerate(sweep.jobs)}
    first, last = sweep.jobs[0].name, sweep.jobs[-1].name
    return hues, [(hues[first], f"run {first}, and by hue up to"), (hues[last], f"run {last}")]


def _of(job: Job, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(job.said.get(key, "") for key in keys)


def _values(sweep: Sweep, keys: Sequence[str]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(_of(job, keys) for job in sweep.jobs))


def _named(keys: Sequence[str], values: Sequence[str]) -> str:
    pairs = (f"{key}={rounded(value)}" for key, value in zip(keys, values, strict=True))
    return ", ".join(pairs)


def _label(job: Job, varied: Sequence[str]) -> str:
    said = _named(
        [k for k in varied if k in job.said], [job.said[k] for k in varied if k in job.said]
    )
    return f"run {job.name}" + (f": {said}" if said else "")


def _panels(sweep: Sweep, colors: Mapping[str, str]) -> tuple[list[Panel], list[str]]:
    varied = sweep.varied()
    drawn, missing = [], []
    for metric in dict.fromkeys((*_headline(sweep), *_EVALUATED)):
        title, scale = evaluated_title(metric), 100 if is_share(metric) else 1
        found = {job: _mean_over_sets(job.history, metric) for job in sweep.jobs}
        curves = _all(found, colors, varied, scale)
        several = any(len(job.history.sets(f"eval/{metric}")) > 1 for job in sweep.jobs)
        note = "Mean over evaluation sets." if several else ""
        if curves:
            limits = name_of(metric).limits
            drawn.append(panel(title, curves, note=note, legend=(), limits=limits))
        else:
            missing.append(f"{title}: no run has evaluated it on the way.")
    for name in _TRAINING:
        made = _trained(name, sweep, colors)
        if made:
            drawn.append(made)
        else:
            missing.append(f"{name_of(name).titled}: no run has logged {name}.")
    return drawn, missing


def _trained(name: str, sweep: Sweep, colors: Mapping[str, str]) -> Panel | None:
    """All runs' curves of a training scalar; ``None`` if no run has logged it."""
    title, note, found = name_of(name).titled, "", {}
    for job in sweep.jobs:
        found[job] = job.history.get(name)
        if name in _ON_POLICY and found[job][1]:
            own = job.history.get(name, BEHAVIOURS[0])
            note = note or "On-policy batches."
            if own[1]:
                found[job] = own
            else:
                note = "On-policy batches; of runs without any, all batches."
    curves = _all(found, colors, sweep.varied())
    if not curves:
        return None
    if name == _NO_CURVE:
        curves = [replace(curve, kind="dots") for curve in curves]
    is_loss = name == "train/loss"
    if is_loss:
        methods = {job.run.baseline for job in found if job.run}
        title = loss_title(methods.pop()) if len(methods) == 1 else "loss, each method's own"
    return panel(title, curves, note=note, log=is_loss, legend=(), most=_MOST_POINTS)


def _all(
    found: Mapping[Job, tuple[Sequence[int], Sequence[float]]],
    colors: Mapping[str, str],
    varied: Sequence[str],
    scale: float = 1,
) -> list[Curve]:
    return [
        Curve(
            _label(job, varied), x, [scale * v for v in y], color=colors[job.name], owner=job.name
        )
        for job, (x, y) in found.items()
        if y
    ]


def _mean_over_sets(history: History, metric: str) -> tuple[list[int], list[float]]:
    """Of evaluations on the way, at the steps that all sets have."""
    own = [
        dict(zip(*history.get(f"eval/{metric}/{group}"), strict=True))
        for group in history.sets(f"eval/{metric}")
    ]
    if not own:
        return [], []
    steps = sorted(set.intersection(*(set(values) for values in own)))
    return steps, [fmean(values[step] for values in own) for step in steps]


# -- the finished ones ------------------------------------------------------------------------------


def _comparison(sweep: Sweep, made: Path, whole: bool) -> list[Block | HtmlBlock]:
    """What the report across runs says of those that have finished."""
    runs = [job.run for job in sweep.jobs if job.run and job.run.status == "finished"]
    if not runs:
        return [Heading("Finished runs side by side"), Text("None has finished yet.")]
    blocks: list[Block | HtmlBlock] = [Heading("Finished runs side by side")]
    try:
        found = sections(runs)
        notes = [*left_out(runs, found), *(note for section in found for note in section.notes)]
        blocks += [Items(notes)] if notes else []
        for section in found:
            if not whole or len(section.methods) > _MOST_METHODS:
                blocks += [Heading(section.name, 3), results(section)]
                again = f"python -m gfn_runner.report {shlex.quote(str(sweep.folder))}"
                why = "it has many methods" if whole else "the sweep goes on"
                blocks.append(
                    Text(f"Without figures and samples, since {why}; they come from: {again}")
                )
                continue
            from gfn_runner.report.across import draw

            blocks += section_blocks(section, *draw(section, made), sweep.folder, level=3)
    except UserError as error:
        blocks.append(Text("No comparison: " + "; ".join(map(str, error.problems))))
    return blocks
