"""One run's page, ``report.html``, from the files of its folder, whether the run has ended or not."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfn_runner.report.headline import memory_at_most
from gfn_runner.report.history import History
from gfn_runner.report.names import column_title
from gfn_runner.report.page import Picture, Table, local_time, plotly, render
from gfn_runner.report.plots import run_plots
from gfn_runner.report.runs import (
    Run,
    callback_arguments,
    environment_files,
    last_lines,
    read_run,
    trains,
)
from gfn_runner.report.samples import first_of_each_set, read_samples
from gfn_runner.report.states import PATIENCE, State, StateName, state_of
from gfn_runner.report.table import columns_of, hundredths, metric_cell, row_labels
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.overrides import by_itself
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import is_sweep

PAGE = "report.html"
NEWEST = "samples_newest.jsonl"
_REFRESH = 30  # seconds, where a config does not say
_CONDITIONS, _SAMPLES = 8, 4
_LOG_LINES = 30
_LONGEST = 300  # characters of a prompt or a sample
# Figures that show what the charts do not.
_FIGURES = {
    "accuracy": "Accuracy while training, and at the end beside the base model",
    "histogram": "Share of each value among the samples",
    "shares": "Shares that the task measures; what each is a share of stands below it",
    "likelihood_diversity": "Log-likelihood under the base model against diversity",
    "log_reward": "log R of samples, beside demonstrations of the same conditions",
}


def write_run_page(
    folder: Path, history: History | None = None, state_name: StateName | None = None
) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        history: of the folder, from an earlier time: then only what was added since is read.
        state_name: the state, from the run's own process; see :func:`state_of`.

    Raises:
        UserError: at files that are not what a run writes.
        OSError: if the page cannot be written; the one before is left.
    """
    run = read_run(folder)
    history = (history or History(folder / "metrics.jsonl")).read()
    state = state_of(run, history, state_name)
    now = time.time()
    refresh = None if state.has_ended else refresh_of(run.config)
    live = {"refresh": refresh, "written": now, "due": _due(run, state, now)}
    page = folder / PAGE
    text = render("run.html", live=live, **_content(run, history, state))
    write_atomically(page, text, durable=False)
    return page


def refresh_of(config: Mapping[str, Any]) -> int:
    """Seconds after which a browser loads the page of an unfinished run again."""
    return int(callback_arguments(config, "report").get("refresh", _REFRESH))


def _due(run: Run, state: State, now: float) -> float | None:
    """When a running run would have written its page again: after an evaluation, or at its end."""
    every = callback_arguments(run.config, "evaluation").get("every_n_steps")
    pace = state.seconds_per_step
    if state.name != "running" or not state.left or not every or pace is None:
        return None  # a final evaluation may take any time
    # Three times as long: an evaluation takes its own time, and machines are shared.
    return now + max(PATIENCE, 3 * pace * every)


def _content(run: Run, history: History, state: State) -> dict[str, Any]:
    """The values of ``templates/run.html``."""
    method = f", {run.baseline}" if run.baseline else ""
    sections, missing = run_plots(run, history)
    has_results = bool(run.metrics) and state.name == "ok"
    metrics = [(name, f"{value:.6g}") for name, value in sorted(run.metrics.items())]
    samples_text, samples = _samples(run)
    return {
        "title": f"{run.task_name}{method}: {'/'.join(run.folder.resolve().parts[-2:])}",
        "state": state,
        "facts": _facts(run, state),
        "sweep": f"../{PAGE}" if is_sweep(run.folder.parent) else "",
        "log_lines": last_lines(run.folder / "run.log")[-_LOG_LINES:],
        "results": _results(run) if has_results else None,
        "metrics": Table(("name", "value"), metrics) if has_results else None,
        "trains": trains(run.config) or sections,
        "sections": sections,
        "missing": missing,
        "plotly": plotly() if sections else "",
        "samples_text": samples_text,
        "samples": samples,
        "drawn": _pictures(run),
        "command": shlex.join(["python", "-m", "gfn_runner", *by_itself(run.overrides)]),
        "files": _files(run),
    }


def _facts(run: Run, state: State) -> list[tuple[str, str]]:
    facts = []
    if state.steps is not None:
        facts.append(("optimizer step", f"{state.step or 0} of {state.steps}"))
    elif state.step is not None:
        facts.append(("optimizer step", str(state.step)))
    if state.left is not None:
        left = f"about {duration(state.left)}" if state.left else "final evaluation"
        facts.append(("training left", left))
    if "run/minutes" in run.metrics and state.name == "ok":
        facts.append(("time", duration(60 * run.metrics["run/minutes"])))
    elif state.seconds is not None:
        facts.append(("time so far", duration(state.seconds)))
    if state.began:
        facts.append(("begun", local_time(state.began)))
    target = run.section("objective").get("_target_") or "unknown objective"
    facts += [
        ("method", run.baseline or f"GFlowNet, {target.rpartition('.')[2]}"),
        ("base model", str(run.section("lm").get("name", "unknown"))),
        ("seed", str(run.seed)),
        ("commit", ", ".join(run.commits) or "unknown"),
    ]
    memory = memory_at_most(run.metrics)
    return [*facts, *([("at most", memory)] if memory else [])]


def _results(run: Run) -> Table | None:
    """The headline metrics, a row for the policy and one for each of those below it."""
    labels = row_labels(run.metrics, run.baseline or "this run")
    columns = columns_of(run.metrics, labels, run.headline)
    rows = [
        (label, *(metric_cell(run.metrics, prefix, name) for name in columns))
        for prefix, label in labels.items()
        if any(f"{prefix}/{name}" in run.metrics for name in columns)
    ]
    return Table(("", *map(column_title, columns)), rows) if columns else None


def _samples(run: Run) -> tuple[str, Table | None]:
    """A few strings for the first conditions: of the last evaluation, or of the newest on the way."""
    final = [*run.folder.glob("samples.jsonl"), *sorted(run.folder.glob("samples_*.jsonl"))]
    own = [path for path in final if path.name != NEWEST]
    # A run that was resumed has older samples of an end that counts no more.
    files = [path for path in (*own[:1], run.folder / NEWEST) if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_mtime, default=None)
    if path is None:
        return "None yet: the first evaluation writes some.", None
    try:
        records = read_samples(path)
    except ValueError as error:
        return f"{path.name} cannot be read ({error}).", None
    records = [record for record in records if record["singles"]]
    if not records:
        return f"{path.name} holds no samples at temperature 1.", None
    step = records[0].get("step")
    when = "in the last evaluation" if step is None else f"at optimizer step {step}"
    text = f"The first samples at temperature 1 of a few conditions, {when} ({path.name}); nats."
    each = max(1, _CONDITIONS // len({str(record.get("group")) for record in records}))
    shown = first_of_each_set(records, each)
    rows = [row for record in shown for row in _sample_rows(record)]
    header = ("prompt", "answer", "sample", "log R", "log q")
    kept = [at for at in range(len(header)) if at != 1 or any(row[1] for row in rows)]
    return text, Table([header[i] for i in kept], [[row[i] for i in kept] for row in rows], False)


def _sample_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a sample; prompt and answer in the first one alone."""
    rows = []
    columns = [record.get(name, []) for name in ("log_reward", "log_pf")]
    for at, text in enumerate(record["singles"][:_SAMPLES]):
        numbers = (hundredths(own[at]) if at < len(own) else "" for own in columns)
        first = (_short(str(record.get("prompt", ""))), str(record.get("answer") or ""))
        rows.append((*(("", "") if at else first), _short(text) or "(empty)", *numbers))
    return rows


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else "…" + text[-_LONGEST:]


def _pictures(run: Run) -> list[Picture]:
    if run.status != "finished":
        return []
    drawn = [(run.folder / "figures" / f"{name}.png", text) for name, text in _FIGURES.items()]
    return [Picture(path, f"{text}.") for path, text in drawn if path.is_file()]


def _files(run: Run) -> list[tuple[str, str]]:
    """The resolved config and the environment of each part, with their titles."""
    config = ""
    with contextlib.suppress(OSError, ValueError):  # gone since it was read
        config = (run.folder / "config.yaml").read_text(encoding="utf-8")
    parts = zip(environment_files(run.folder), run.environments, strict=False)
    environments = [(f"What it ran on ({p.name})", json.dumps(e, indent=2)) for p, e in parts]
    return [("Resolved config (config.yaml)", config), *environments]
