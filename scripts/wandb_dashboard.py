"""Build a W&B workspace and a report from the panels of a run's page; save them, or print them as JSON.

    python scripts/wandb_dashboard.py --json                            # no account, no server
    python scripts/wandb_dashboard.py --entity me --project gfn_runner  # saves both and prints where

Requires ``pip install 'gfn-runner[dashboards]'``. What each panel shows: docs/dashboards.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from gfn_runner.loggers.wandb_run import STEP
from gfn_runner.report.names import is_share
from gfn_runner.report.panels import SECTIONS, Panel, evaluated
from gfn_runner.runtime.terminal import prepare_output

MISSING = (
    "wandb_dashboard: wandb-workspaces is missing, which describes W&B's workspaces and reports; "
    "pip install 'gfn-runner[dashboards]'"
)
NO_ACCOUNT = (
    "wandb_dashboard: W&B refused it ({reason}); `wandb login` sets an account up, and --json "
    "prints the same without one"
)


_WIDTH, _HEIGHT, _COLUMNS = 8, 6, 24


def panels() -> list[Panel]:
    """Return all panels in order."""
    return [panel for section in SECTIONS for panel in section.panels]


def title(panel: Panel) -> str:
    """Return the title with the unit; W&B shows shares as logged, from 0 to 1 rather than in %."""
    shares = panel.is_evaluated and is_share(evaluated(panel.metrics[0]))
    return panel.named.title if shares else panel.named.with_unit


def workspace(entity: str, project: str, name: str) -> Any:
    """Build the workspace from ``SECTIONS``; W&B generates panels for everything else below."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=s.name, panels=[_drawn(p) for p in s.panels], is_open=number < 4)
        for number, s in enumerate(SECTIONS)
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP),
        auto_generate_panels=True,
    )


def report(entity: str, project: str, name: str, *, of_project: bool) -> Any:
    """Build the report from ``SECTIONS``, each with a heading, a sentence and a grid of panels.

    Args:
        entity, project: where the report is saved.
        name: title of the report.
        of_project: whether to select the runs of the project, which requires a query to W&B.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        where: dict[str, Any] = {"entity": entity, "project": project} if of_project else {}
        drawn = [_drawn(panel, number) for number, panel in enumerate(section.panels)]
        grid = wr.PanelGrid(runsets=[wr.Runset(**where)], panels=drawn)
        blocks += [wr.H2(section.name), wr.P(section.text), grid]
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Made by scripts/wandb_dashboard.py",
        blocks=blocks,
        width="fluid",
    )


def _drawn(panel: Panel, number: int = 0) -> Any:
    """Convert a panel to an object of the library, positioned within its section."""
    import wandb_workspaces.reports.v2 as wr

    per_row = _COLUMNS // _WIDTH
    layout = wr.Layout(
        x=_WIDTH * (number % per_row), y=_HEIGHT * (number // per_row), w=_WIDTH, h=_HEIGHT
    )
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.metrics[0], layout=layout)
    if panel.kind == "media":
        return wr.MediaBrowser(title=title(panel), media_keys=list(panel.metrics), layout=layout)
    if panel.kind == "bars":
        return wr.BarPlot(title=title(panel), metrics=list(panel.metrics), layout=layout)
    return wr.LinePlot(
        title=title(panel),
        x=STEP,
        y=[] if panel.pattern else list(panel.metrics),
        metric_regex=panel.pattern,
        log_y=panel.log or None,
        title_x="optimizer steps",
        plot_type="stacked-area" if panel.kind == "areas" else "line",
        layout=layout,
    )


def as_json(entity: str, project: str, name: str) -> str:
    """Return workspace and report in W&B's format, without contacting a server."""
    parts = {
        "workspace": workspace(entity, project, name),
        "report": report(entity, project, name, of_project=False),
    }
    # The library has no public API to show what it would save, hence its pinned version.
    plain = {
        key: json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
        for key, made in parts.items()
    }
    return json.dumps(plain, indent=2, ensure_ascii=False)


def _save(entity: str, project: str, name: str) -> None:
    for made in (
        workspace(entity, project, name),
        report(entity, project, name, of_project=True),
    ):
        made.save()
        print(made.url)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", help="user or team at W&B")
    parser.add_argument("--project", default="gfn_runner", help="default: %(default)s")
    parser.add_argument("--name", default="gfn_runner", help="name of both; default: %(default)s")
    parser.add_argument(
        "--json", action="store_true", help="print both and save nothing; needs no account"
    )
    arguments = parser.parse_args(argv)
    if arguments.entity is None and not arguments.json:
        parser.error("--entity is missing: name the user or team at W&B, or use --json to print it")
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        print(MISSING, file=sys.stderr)
        return 2
    if arguments.json:
        print(as_json(arguments.entity or "", arguments.project, arguments.name))
        return 0
    try:
        _save(arguments.entity, arguments.project, arguments.name)
    except Exception as error:  # the library raises whatever its server causes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(NO_ACCOUNT.format(reason=reason), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    prepare_output()
    raise SystemExit(main())
