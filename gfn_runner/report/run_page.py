"""One run's page, from the files of its folder alone, whether the run has ended or not; runs no model."""

from __future__ import annotations

import importlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gfn_runner.cli.overrides import by_itself
from gfn_runner.report.headline import memory_at_most
from gfn_runner.report.history import History
from gfn_runner.report.names import column_title, is_share
from gfn_runner.report.pages import (
    Block,
    Cell,
    Code,
    Facts,
    Folded,
    Heading,
    HtmlBlock,
    Items,
    Link,
    Live,
    Panels,
    Picture,
    Table,
    Text,
)
from gfn_runner.report.panels import Shown, draw_panels
from gfn_runner.report.runs import Run, last_lines, read_run, trains
from gfn_runner.report.states import PATIENCE, State, Word, duration, state_of
from gfn_runner.report.sweeps import is_sweep
from gfn_runner.report.table import row_labels, shown_number
from gfn_runner.report.web import html_page, write_page
from gfn_runner.runtime.json_lines import read_lines

PAGE = "report.html"
NEWEST = "samples_newest.jsonl"
_REFRESH = 30  # seconds, where a config does not say
_CONDITIONS, _SAMPLES = 8, 4
_LOG_LINES = 30
# What the charts do not show already.
_FIGURES = {
    "accuracy": "Accuracy while training, and at the end beside the base model",
    "histogram": "Share of each value among the samples",
    "shares": "Shares that the task measures; what each is a share of stands below it",
    "likelihood_diversity": "Log-likelihood under the base model against diversity",
    "log_reward": "log R of samples, beside demonstrations of the same conditions",
}


def write_run_page(folder: Path, history: History | None = None, told: Word | None = None) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: with a ``config.yaml``.
        history: of the folder, from an earlier time: then only what was added since is read.
        told: what the run's own process knows of its state; see :func:`state_of`.

    Returns:
        The page's file.

    Raises:
        UserError: at files that are not what a run writes.
        OSError: if the page cannot be written; the one before is left.
    """
    run = read_run(folder)
    history = (history or History(folder / "metrics.jsonl")).read()
    state = state_of(run, history, told)
    now = time.time()
    live = Live(None if state.has_ended else refresh_of(run.config), now, _due(run, state, now))
    page = folder / PAGE
    write_page(page, html_page(_blocks(run, history, state), live))
    return page


def refresh_of(config: Mapping[str, Any]) -> int:
    """Seconds after which a browser loads the page of an unfinished run again."""
    return int(config.get("callbacks", {}).get("report", {}).get("refresh", _REFRESH))


def _due(run: Run, state: State, now: float) -> float | None:
    """When a running run would have written its page again: behind an evaluation, or where it ends."""
    every = run.config.get("callbacks", {}).get("evaluation", {}).get("every")
    if state.word != "running" or not state.left or not every or state.pace is None:
        return None  # a final evaluation may take any time
    # Three times as long: an evaluation takes its own time, and machines are shared.
    return now + max(PATIENCE, 3 * state.pace * every)


def headline_of(run: Run) -> tuple[str, ...]:
    """Metrics that the run's task puts first; none if its class cannot be imported any more."""
    module, _, name = run.task.rpartition(".")
    try:
        return tuple(getattr(importlib.import_module(module), name).headline)
    except (ImportError, AttributeError):
        return ()


def task_name(run: Run) -> str:
    """As in ``task=…``; the class's own if it cannot be imported any more."""
    module, _, name = run.task.rpartition(".")
    try:
        return str(getattr(importlib.import_module(module), name).name)
    except (ImportError, AttributeError):
        return name


def _blocks(run: Run, history: History, state: State) -> list[Block | HtmlBlock]:
    name = task_name(run)
    method = f", {run.baseline}" if run.baseline else ""
    blocks: list[Block | HtmlBlock] = [
        Heading(f"{name}{method}: {'/'.join(run.folder.resolve().parts[-2:])}", 1),
        Facts(_facts(run, state)),
    ]
    log = last_lines(run.folder / "run.log")[-_LOG_LINES:]
    if state.word in ("failed", "silent", "interrupted"):
        blocks += [Text(f"{state.word}: {state.why}")] if state.why else []
        blocks += [Heading("End of run.log"), Code(log)] if log else []
    if run.metrics and state.word == "ok":
        blocks += _results(run)
    blocks += _curves(run, history)
    blocks += _samples(run)
    blocks += _pictures(run)
    blocks += _settings(run)
    if state.word not in ("failed", "silent", "interrupted"):
        blocks += [Heading("End of run.log"), Code(log) if log else Text("Nothing was logged.")]
    return blocks


def _facts(run: Run, state: State) -> list[tuple[str, Cell]]:
    config = run.config
    facts: list[tuple[str, Cell]] = [("state", state.badge)]
    if state.steps is not None:
        facts.append(("optimizer step", f"{state.step or 0} of {state.steps}"))
    elif state.step is not None:
        facts.append(("optimizer step", str(state.step)))
    if state.left is not None:
        at_end = "final evaluation" if state.left == 0 else f"about {duration(state.left)}"
        facts.append(("training left", at_end))
    if "run/minutes" in run.metrics and state.word == "ok":
        facts.append(("time", duration(60 * run.metrics["run/minutes"])))
    elif state.begun:
        last = time.time() if state.word == "running" else state.seen
        facts.append(("time so far", duration(max(0.0, last - state.begun))))
    if state.begun:
        facts.append(("begun", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.begun))))
    facts += [
        ("method", run.baseline or f"GFlowNet, {_class(config.get('objective'))}"),
        ("base model", str(config.get("lm", {}).get("name", "unknown"))),
        ("seed", str(run.seed)),
        ("commit", ", ".join(run.commits) or "unknown"),
    ]
    if memory := memory_at_most(run.metrics):
        facts.append(("at most", memory))
    if is_sweep(run.folder.parent):
        facts.append(("sweep", Link("all runs of it", f"../{PAGE}")))
    return facts


def _class(section: Any) -> str:
    target = section.get("_target_", "") if isinstance(section, Mapping) else ""
    return str(target).rpartition(".")[2] or "unknown objective"


def _results(run: Run) -> list[Block | HtmlBlock]:
    """The final metrics: headline first, and all others folded away."""
    headline = headline_of(run)
    labels = row_labels(run.metrics, "this run" if run.baseline is None else run.baseline)
    names = dict.fromkeys(n.partition("/")[2] for n in run.metrics if n.partition("/")[0] in labels)
    names = dict.fromkeys(n for n in names if "/" in n)
    first = [n for metric in headline for n in names if n.partition("/")[0] == metric]
    blocks: list[Block | HtmlBlock] = []
    if first:
        rows = [
            (label, *(_result(run.metrics, prefix, name) for name in first))
            for prefix, label in labels.items()
            if any(f"{prefix}/{name}" in run.metrics for name in first)
        ]
        blocks += [Heading("Results"), Table(("", *map(column_title, first)), rows)]
    rest = [(n, f"{run.metrics[n]:.6g}") for n in sorted(run.metrics)]
    return [*blocks, Folded(f"All {len(rest)} final metrics", [Table(("name", "value"), rest)])]


def _result(metrics: Mapping[str, float], prefix: str, name: str) -> str:
    if f"{prefix}/{name}" not in metrics:
        return ""
    metric, _, group = name.partition("/")
    ends = [metrics.get(f"{prefix}/{metric}_{end}/{group}") for end in ("low", "high")]
    shown = shown_number(name, metrics[f"{prefix}/{name}"])
    if ends[0] is None or ends[1] is None:
        return shown
    scale = 100 if is_share(name) else 1
    return f"{shown}\n[{scale * ends[0]:.3g}, {scale * ends[1]:.3g}]"


def _curves(run: Run, history: History) -> list[Block | HtmlBlock]:
    every = run.config.get("callbacks", {}).get("evaluation", {}).get("every", 1)
    shown = Shown(history, headline_of(run), trains(run.config), bool(every), run.baseline)
    drawn, missing = draw_panels(shown)
    blocks: list[Block | HtmlBlock] = [Heading("Course of training")]
    if drawn:
        blocks.append(Panels(drawn))
    if missing and all("trains nothing" in reason for reason in missing):
        return [*blocks, Text("No curves: the run trains nothing.")]
    if missing:
        blocks.append(without_data(missing))
    return blocks


def without_data(missing: Sequence[str]) -> Folded:
    """The charts left out, each with its reason."""
    charts = "1 chart" if len(missing) == 1 else f"{len(missing)} charts"
    return Folded(f"{charts} without data", [Items(missing)])


def _samples(run: Run) -> list[Block | HtmlBlock]:
    """A few strings for the first conditions: of the last evaluation, or of the newest on the way."""
    heading = Heading("Samples")
    final = [*run.folder.glob("samples.jsonl"), *sorted(run.folder.glob("samples_*.jsonl"))]
    own = [path for path in final if path.name != NEWEST]
    newest = run.folder / NEWEST
    # A run that was resumed has older samples of an end that is none any more.
    path = max((p for p in (*own[:1], newest) if p.is_file()), key=_written, default=None)
    if path is None:
        return [heading, Text("None yet: the first evaluation writes some.")]
    try:
        records = read_lines(path)
    except ValueError as error:
        return [heading, Text(f"{path.name} cannot be read ({error}).")]
    records = [record for record in records if record.get("singles")]
    if not records:
        return [heading, Text(f"{path.name} holds no samples at temperature 1.")]
    rows = [row for record in _of_each_group(records) for row in _sample_rows(record)]
    step = records[0].get("step")
    said = f"at optimizer step {step}" if step is not None else "in the last evaluation"
    header: tuple[str, ...] = ("prompt", "answer", "sample", "log R", "log q")
    if not any(row[1] for row in rows):
        header, rows = _without_answer(header), [_without_answer(row) for row in rows]
    return [
        heading,
        Text(
            f"The first samples at temperature 1 of a few conditions, {said} ({path.name}); nats."
        ),
        Table(header, rows, numeric=False),
    ]


def _without_answer(row: tuple[str, ...]) -> tuple[str, ...]:
    return (row[0], *row[2:])


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _of_each_group(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of each evaluation set, as far as there is room."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record.get("group")), []).append(record)
    most = max(1, _CONDITIONS // len(groups))
    return [record for own in groups.values() for record in own[:most]]


def _sample_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    columns = [record.get(name, []) for name in ("log_reward", "log_pf")]
    for number, text in enumerate(record["singles"][:_SAMPLES]):
        numbers = (f"{c[number]:.2f}".replace("-", "−") if number < len(c) else "" for c in columns)
        first = (_short(str(record.get("prompt", ""))), str(record.get("answer") or ""))
        # The prompt is said once.
        rows.append((*(first if number == 0 else ("", "")), _short(text) or "(empty)", *numbers))
    return rows


def _short(text: str, most: int = 300) -> str:
    text = text.strip()
    return text if len(text) <= most else "…" + text[-most:]


def _pictures(run: Run) -> list[Block | HtmlBlock]:
    if run.status != "finished":
        return []
    folder = run.folder / "figures"
    drawn = [(folder / f"{name}.png", said) for name, said in _FIGURES.items()]
    pictures = [Picture(path, f"{said}.") for path, said in drawn if path.is_file()]
    return [Heading("Figures of the end"), *pictures] if pictures else []


def _settings(run: Run) -> list[Block | HtmlBlock]:
    command = shlex.join(["python", "-m", "gfn_runner", *by_itself(run.overrides)])
    blocks: list[Block | HtmlBlock] = [Heading("How it was run"), Code([command])]
    try:
        lines = (run.folder / "config.yaml").read_text(encoding="utf-8").splitlines()
        blocks.append(Folded("Resolved config (config.yaml)", [Code(lines)]))
    except OSError:
        pass  # it was read before: gone in between
    parts = sorted(run.folder.glob("environment*.json"), key=lambda p: (len(p.name), p.name))
    for path in parts:
        try:
            text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=2)
        except (OSError, ValueError):
            continue
        blocks.append(Folded(f"What it ran on ({path.name})", [Code(text.splitlines())]))
    return blocks
