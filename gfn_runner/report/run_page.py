"""The page ``report.html`` of one run, finished or not, generated from the files in its folder."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfn_runner.report.headline import memory_at_most
from gfn_runner.report.page import Picture, local_time, plotly, render
from gfn_runner.report.plots import run_charts
from gfn_runner.report.runs import Run, environment_files, read_run
from gfn_runner.report.samples import first_of_each_set, read_samples
from gfn_runner.report.saved_config import callback_arguments, trains
from gfn_runner.report.table import Table, hundredths, result_table
from gfn_runner.runtime.files import write_atomically
from gfn_runner.runtime.overrides import by_itself, config_flags
from gfn_runner.runtime.status import duration
from gfn_runner.runtime.sweep_record import StateName, is_sweep

PAGE = "report.html"
NEWEST = "samples_newest.jsonl"
_REFRESH = 30  # seconds, if the config does not set it
_CONDITIONS, _SAMPLES = 8, 4
_LOG_LINES = 30
_LONGEST = 300  # characters of a prompt or a sample
# Figures that add to what the charts show.
_FIGURES = {
    "accuracy": "Accuracy while training, and at the end beside the base model",
    "histogram": "Share of each value among the samples",
    "shares": "Shares that the task measures",
    "likelihood_diversity": "Log-likelihood under the base model against diversity",
    "log_reward": "log R of samples, beside demonstrations of the same conditions",
}


def write_run_page(folder: Path, known: StateName | None = None) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        known: state reported by the run's own process; see :func:`~gfn_runner.report.states.state_of`.

    Raises:
        UserError: if a file is not in the format that runs write.
        OSError: if the page cannot be written; the previous page is kept.
    """
    run = read_run(folder, known)
    refresh = None if run.state.has_ended else refresh_of(run.config)
    text = render("run.html", written=time.time(), refresh=refresh, **_content(run))
    write_atomically(folder / PAGE, text, durable=False)
    return folder / PAGE


def refresh_of(config: Mapping[str, Any]) -> int:
    """Return the interval in seconds at which a browser reloads the page of an unfinished run."""
    return int(callback_arguments(config, "report").get("refresh", _REFRESH))


def _content(run: Run) -> dict[str, Any]:
    """Return the variables of ``templates/run.html``."""
    method = f", {run.baseline}" if run.baseline else ""
    charts = run_charts(run)
    metrics = [(name, f"{value:.6g}") for name, value in sorted(run.metrics.items())]
    samples_text, samples = _samples(run)
    return {
        "title": f"{run.task_name}{method}: {'/'.join(run.folder.resolve().parts[-2:])}",
        "state": run.state,
        "facts": _facts(run),
        "sweep": f"../{PAGE}" if is_sweep(run.folder.parent) else "",
        "log_lines": run.log[-_LOG_LINES:],
        "results": result_table(run.headline, run.metrics, method=run.baseline or "this run"),
        "metrics": Table(("name", "value"), metrics) if run.is_finished else None,
        "trains": trains(run.config) or charts.sections,
        "charts": charts,
        "plotly": plotly() if charts.sections else "",
        "samples_text": samples_text,
        "samples": samples,
        "drawn": _pictures(run),
        "command": shlex.join(
            ["python", "-m", "gfn_runner", *config_flags(run.folder), *by_itself(run.overrides)]
        ),
        "files": _files(run),
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    state, facts = run.state, []
    if state.steps is not None:
        facts.append(("optimizer step", f"{state.step or 0} of {state.steps}"))
    if state.left is not None:
        left = f"about {duration(state.left)}" if state.left else "final evaluation"
        facts.append(("training left", left))
    if "run/minutes" in run.metrics and run.is_finished:
        facts.append(("time", duration(60 * run.metrics["run/minutes"])))
    elif state.seconds is not None:
        facts.append(("elapsed time", duration(state.seconds)))
    if state.began:
        facts.append(("started", local_time(state.began)))
    target = run.section("objective").get("_target_") or "unknown objective"
    facts += [
        ("method", run.baseline or f"GFlowNet, {target.rpartition('.')[2]}"),
        ("base model", str(run.section("lm").get("name", "unknown"))),
        ("seed", str(run.seed)),
        ("commit", ", ".join(run.commits) or "unknown"),
        ("peak", memory_at_most(run.metrics)),
    ]
    return [(name, value) for name, value in facts if value]


def _samples(run: Run) -> tuple[str, Table | None]:
    """Tabulate a few strings for the first conditions, from the final or newest intermediate evaluation."""
    others = sorted(run.folder.glob("samples_*.jsonl"))
    final = [run.folder / "samples.jsonl", *(path for path in others if path.name != NEWEST)]
    final = [path for path in final if path.is_file()]
    newest = [path for path in others if path.name == NEWEST and path.is_file()]
    # A resumed run still has samples of its earlier, outdated final evaluation.
    path = max([*final[:1], *newest], key=lambda file: file.stat().st_mtime, default=None)
    if path is None:
        return "None yet: the first evaluation writes some.", None
    try:
        records = [record for record in read_samples(path) if record["singles"]]
    except ValueError as error:
        return f"{path.name} cannot be read ({error}).", None
    if not records:
        return f"{path.name} holds no samples at temperature 1.", None
    step = records[0].get("step")
    when = "in the last evaluation" if step is None else f"at optimizer step {step}"
    text = f"The first samples at temperature 1 of a few conditions, {when} ({path.name}); nats."
    each = max(1, _CONDITIONS // len({str(record.get("group")) for record in records}))
    shown = first_of_each_set(records, each)
    rows = [row for record in shown for row in _sample_rows(record)]
    header = ("prompt", "answer", "sample", "log R", "log q")
    return text, Table(header, rows, numeric=False).without_empty()


def _sample_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one row per sample, with prompt and answer in the first one only."""
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
    drawn = [(run.folder / "figures" / f"{name}.png", text) for name, text in _FIGURES.items()]
    return [Picture(path, f"{text}.") for path, text in drawn if run.is_finished and path.is_file()]


def _files(run: Run) -> list[tuple[str, str]]:
    """Return the resolved config and the environment at each start of the run, with titles."""
    config = ""
    with contextlib.suppress(OSError, ValueError):  # deleted since the run was read
        config = (run.folder / "config.yaml").read_text(encoding="utf-8")
    parts = zip(environment_files(run.folder), run.environments, strict=False)
    environments = [(f"Environment ({p.name})", json.dumps(e, indent=2)) for p, e in parts]
    return [("Resolved config (config.yaml)", config), *environments]
