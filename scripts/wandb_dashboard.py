"""A W&B workspace and a report as code: made from one list of panels, saved there, or printed as JSON.

    python scripts/wandb_dashboard.py --json                            # no account, no server
    python scripts/wandb_dashboard.py --entity me --project gfn_runner  # saves both and prints where

Needs ``pip install 'gfn-runner[dashboards]'``. What each panel shows: docs/dashboards.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

from gfn_runner.runtime.terminal import print_everywhere

STEP = "trainer/global_step"
MISSING = (
    "wandb_dashboard: wandb-workspaces is missing, which describes W&B's workspaces and reports; "
    "pip install 'gfn-runner[dashboards]'"
)
NO_ACCOUNT = (
    "wandb_dashboard: W&B did not take it ({reason}); `wandb login` sets an account up, and --json "
    "prints the same without one"
)


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: with the unit where there is one.
        metrics: names as they are logged.
        pattern: regular expression of more names, for metrics of which a task decides how many there
            are; instead of ``metrics``.
        kind: lines over optimizer steps; bars of last values; a table; pictures; areas that add up.
        log: whether the y-axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...] = ()
    pattern: str | None = None
    kind: Literal["lines", "bars", "table", "media", "areas"] = "lines"
    log: bool = False


@dataclass(frozen=True)
class Section:
    """Panels under one heading, and what the report says above them."""

    name: str
    words: str
    panels: tuple[Panel, ...]


_OPERANDS = (3, 4, 5)
_PHASES = ("sample", "reward", "policy", "objective", "backward", "other")
SECTIONS = (
    Section(
        "Reward and log-likelihood",
        "What the policy writes, under the posterior (log R, untempered) and under the base model.",
        (
            Panel("log R in training (nats)", ("train/log_reward",)),
            Panel("log R in evaluations (nats)", pattern="^eval/log_reward/.*"),
            Panel("log-likelihood under the base model (nats)", pattern="^eval/log_likelihood/.*"),
            Panel("loss (nats²)", ("train/loss",), log=True),
            Panel("gradient's norm before clipping", ("train/grad_norm",), log=True),
            Panel("length (tokens)", ("train/length",)),
        ),
    ),
    Section(
        "φ spread",
        "Standard deviation of φ = log R/T − log q within a condition: 0 for an exact policy.",
        (
            Panel("all states (nats)", ("train/phi_spread", "train/phi_spread_max")),
            Panel("whole strings (nats)", ("train/phi_spread_terminal",)),
            Panel("evaluations (nats)", pattern="^eval/phi_spread/.*"),
        ),
    ),
    Section(
        "log Z",
        "Mean terminal φ is log Z − KL(policy ‖ posterior); the bound lies between it and log Z.",
        (
            Panel("log Z and its bound (nats)", ("train/log_z", "train/log_z_bound")),
            Panel("their gap (nats)", ("train/log_z_gap",)),
            Panel("evaluations (nats)", pattern="^eval/log_z(_bound)?/.*"),
        ),
    ),
    Section(
        "Diversity",
        "Entropy in training; of tasks that write text, how different the samples of a condition are.",
        (
            Panel("entropy −log q (nats)", ("train/entropy",)),
            Panel("diversity of texts", pattern="^eval/(diversity|distinct_2|unique)/.*"),
            Panel("self-BLEU of texts (low is diverse)", pattern="^eval/self_bleu/.*"),
        ),
    ),
    Section(
        "Accuracy",
        "Shares of right answers by evaluation set; of arithmetic, by number of operands.",
        (
            Panel("majority of the votes", pattern="^eval/vote_accuracy/.*"),
            Panel("single samples", pattern="^eval/single_accuracy/.*"),
            Panel("Bayesian model average", pattern="^eval/predictive_accuracy/.*"),
            *(
                Panel(
                    f"{n} operands, at the end",
                    (
                        f"final/vote_accuracy/{n}_operands",
                        f"final/single_accuracy/{n}_operands",
                    ),
                    kind="bars",
                )
                for n in _OPERANDS
            ),
        ),
    ),
    Section(
        "Replay buffer",
        "How many strings it holds, for how long, and how often it is used.",
        (
            Panel("strings", ("train/buffer_size",)),
            Panel("mean age (optimizer steps)", ("train/buffer_age",)),
            Panel("share of batches from it", ("train/from_replay",)),
        ),
    ),
    Section(
        "Temperatures",
        "T divides log R; the exploration temperature is 1 on-policy, and missing in replayed steps.",
        (
            Panel("reward temperature T", ("train/reward_temperature",)),
            Panel("exploration temperature", ("train/exploration_temperature",)),
            Panel("learning rate", ("train/lr",)),
        ),
    ),
    Section(
        "Samples",
        "What was written in the newest and in the final evaluation, with log R, log q and φ.",
        (
            Panel("newest evaluation", ("samples/eval",), kind="table"),
            Panel("final evaluation", ("samples/final",), kind="table"),
            Panel("figures", ("figures/loss_and_reward", "figures/phi_spread"), kind="media"),
        ),
    ),
    Section(
        "Speed",
        "Where a step's seconds go, and the tokens of strings trained on in each.",
        (
            Panel(
                "seconds of a step by phase",
                tuple(f"seconds/{phase}" for phase in _PHASES),
                kind="areas",
            ),
            Panel("seconds of a step", ("train/seconds",)),
            Panel("tokens per second", ("train/tokens_per_second",)),
        ),
    ),
)
_WIDTH, _HEIGHT, _COLUMNS = 8, 6, 24


def panels() -> list[Panel]:
    """All panels, in their order."""
    return [panel for section in SECTIONS for panel in section.panels]


def workspace(entity: str, project: str, name: str) -> Any:
    """The workspace of ``SECTIONS``; what they leave out follows below, made by W&B itself."""
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
    """The report of ``SECTIONS``: a heading, a sentence and a grid of panels each.

    Args:
        entity, project: where it is kept.
        name: its title.
        of_project: whether its runs are said to be those of the project, for which W&B is asked.
    """
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        where: dict[str, Any] = {"entity": entity, "project": project} if of_project else {}
        drawn = [_drawn(panel, number) for number, panel in enumerate(section.panels)]
        grid = wr.PanelGrid(runsets=[wr.Runset(**where)], panels=drawn)
        blocks += [wr.H2(section.name), wr.P(section.words), grid]
    return wr.Report(
        entity=entity,
        project=project,
        title=name,
        description="Made by scripts/wandb_dashboard.py",
        blocks=blocks,
        width="fluid",
    )


def _drawn(panel: Panel, number: int = 0) -> Any:
    """The panel in the library's words, at its place among those of a section."""
    import wandb_workspaces.reports.v2 as wr

    per_row = _COLUMNS // _WIDTH
    layout = wr.Layout(
        x=_WIDTH * (number % per_row), y=_HEIGHT * (number // per_row), w=_WIDTH, h=_HEIGHT
    )
    if panel.kind == "table":
        return wr.WeavePanelSummaryTable(table_name=panel.metrics[0], layout=layout)
    if panel.kind == "media":
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.metrics), layout=layout)
    if panel.kind == "bars":
        return wr.BarPlot(title=panel.title, metrics=list(panel.metrics), layout=layout)
    return wr.LinePlot(
        title=panel.title,
        x=STEP,
        y=list(panel.metrics),
        metric_regex=panel.pattern,
        log_y=panel.log or None,
        title_x="optimizer steps",
        plot_type="stacked-area" if panel.kind == "areas" else "line",
        layout=layout,
    )


def as_json(entity: str, project: str, name: str) -> str:
    """Workspace and report as W&B keeps them; asks no server."""
    parts = {
        "workspace": workspace(entity, project, name),
        "report": report(entity, project, name, of_project=False),
    }
    # The library has no public way to show what it would save: hence its pinned version.
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
    parser.add_argument("--name", default="gfn_runner", help="of both; default: %(default)s")
    parser.add_argument(
        "--json", action="store_true", help="print both and save nothing; needs no account"
    )
    arguments = parser.parse_args(argv)
    if arguments.entity is None and not arguments.json:
        parser.error("--entity is missing: whose workspace is it to be? (or --json to print it)")
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
    except Exception as error:  # the library raises what its server makes it raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(NO_ACCOUNT.format(reason=reason), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    print_everywhere()
    raise SystemExit(main())
