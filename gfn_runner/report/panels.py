"""The panels of a run's page, a sweep's page and the W&B workspace, defined once as data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gfn_runner.report.names import Name, is_share, name_of


@dataclass(frozen=True)
class Panel:
    """A panel: a chart of one or several metrics.

    Attributes:
        metrics: names as logged; a name that ends in ``/*`` stands for all evaluation sets.
        name: title and unit; if ``None``, those of the first metric.
        labels: legend entries of several metrics, in the same order.
        kind: lines over optimizer steps; dots; dots colored by the origin of the strings
            (``history.SOURCES``); stacked areas. In W&B only: bars of final values, a table, images.

    A sweep's page draws only the first of the metrics, with one curve per run.
    """

    metrics: tuple[str, ...]
    name: Name | None = None
    labels: tuple[str, ...] = ()
    kind: Literal["lines", "dots", "by_source", "areas", "bars", "table", "media"] = "lines"
    log: bool = False
    help: str = ""

    @property
    def named(self) -> Name:
        return self.name or panel_name(self.metrics[0])

    @property
    def is_evaluated(self) -> bool:
        return self.metrics[0].startswith("eval/")

    @property
    def on_pages(self) -> bool:
        return self.kind in ("lines", "dots", "by_source", "areas")

    @property
    def pattern(self) -> str | None:
        """Regular expression that matches the logged names of all evaluation sets; ``None`` without any."""
        bare = [re.escape(name.removesuffix("/*")) for name in self.metrics if name.endswith("/*")]
        return f"^({'|'.join(bare)})/.*" if bare else None


def panel_name(metric: str) -> Name:
    """Return the name of a logged metric; mark evaluation metrics that training also logs."""
    if not metric.startswith("eval/"):
        return name_of(metric)
    bare = evaluated(metric)
    known = name_of(bare)
    if bare in ("log_reward", "phi_spread", "log_z_bound"):
        return Name(f"{known.title}, evaluated", known.unit)
    return known


def evaluated(metric: str) -> str:
    """Strip prefix and suffix from a name such as ``eval/log_reward/*``."""
    return metric.removeprefix("eval/").removesuffix("/*")


@dataclass(frozen=True)
class Section:
    """A heading, the text below it, and its panels."""

    name: str
    text: str
    panels: tuple[Panel, ...]


PHASES = ("sample", "reward", "policy", "objective", "backward", "other")
SECTIONS = (
    Section(
        "Reward and log-likelihood",
        "What the policy writes, under the posterior (log R, untempered) and under the base model.",
        (
            Panel(
                ("train/log_reward",),
                kind="by_source",
                help="The policy hardly writes tempered and stored strings.",
            ),
            Panel(("eval/log_reward/*",)),
            Panel(("eval/log_likelihood/*",)),
            Panel(
                ("train/loss",),
                log=True,
                help="GFlowNet: squared nats, where φ is balanced; SFT: nats per token; PPO, GRPO: clipped "
                "surrogate, with the value loss or the KL to the base model.",
            ),
            Panel(("train/grad_norm",), log=True, help="Before clipping."),
            Panel(("train/length",)),
        ),
    ),
    Section(
        "φ spread",
        "Standard deviation of φ = log R/T − log q within a condition: 0 for an exact policy.",
        (
            Panel(
                ("train/phi_spread_terminal",),
                kind="by_source",
                help="0 for an exact policy, and for one that nearly always writes the same string. "
                "Conditions whose strings are all the same do not count.",
            ),
            Panel(
                ("train/phi_spread", "train/phi_spread_max"),
                labels=("mean over conditions", "largest"),
            ),
            Panel(
                ("eval/phi_spread/*",),
            ),
        ),
    ),
    Section(
        "log Z",
        "Mean terminal φ is log Z − KL(policy ‖ posterior); the bound lies between it and log Z.",
        (
            Panel(
                ("train/elbo", "train/log_z_bound"),
                Name("log Z, on-policy batches", "nats"),
                ("mean terminal φ = log Z − KL", "bound on log Z"),
            ),
            Panel(
                ("train/log_z_gap",),
                help="0 for an exact policy, and for equal strings.",
            ),
            Panel(
                ("eval/elbo/*", "eval/log_z_bound/*", "eval/eubo/*"),
                Name("log Z, evaluated", "nats"),
                ("ELBO", "bound", "EUBO"),
                help="ELBO = log Z − KL (line), importance-weighted bound (dashed), EUBO (dotted); the gap closes.",
            ),
        ),
    ),
    Section(
        "Diversity",
        "Entropy in training; for tasks that write text, how different the samples of a condition are.",
        (
            Panel(("train/entropy",)),
            Panel(("eval/diversity/*",)),
            Panel(("eval/distinct_2/*",)),
            Panel(("eval/self_bleu/*",)),
            Panel(("eval/unique/*",)),
        ),
    ),
    Section(
        "Accuracy",
        "Shares of right answers by evaluation set; for arithmetic, by number of operands.",
        (
            Panel(("eval/vote_accuracy/*",)),
            Panel(("eval/single_accuracy/*",)),
            Panel(("eval/predictive_accuracy/*",)),
            *(
                Panel(
                    (f"final/vote_accuracy/{n}_operands", f"final/single_accuracy/{n}_operands"),
                    Name(f"{n} operands, at the end"),
                    kind="bars",
                )
                for n in (3, 4, 5)
            ),
        ),
    ),
    Section(
        "Replay buffer",
        "How many strings it holds, for how long, and how often it is used.",
        (
            Panel(("train/buffer_size",)),
            Panel(("train/buffer_age",)),
            Panel(("train/from_replay",)),
        ),
    ),
    Section(
        "Temperatures",
        "T divides log R; the exploration temperature is 1 on-policy, and missing in replayed steps.",
        (
            Panel(("train/reward_temperature",)),
            Panel(
                ("train/exploration_temperature",),
                kind="dots",
            ),
            Panel(("train/lr",)),
        ),
    ),
    Section(
        "Samples",
        "What was written in the newest and in the final evaluation, with log R, log q and φ.",
        (
            Panel(("samples/eval",), Name("newest evaluation"), kind="table"),
            Panel(("samples/final",), Name("final evaluation"), kind="table"),
            Panel(("figures/loss_and_reward", "figures/phi_spread"), Name("figures"), kind="media"),
        ),
    ),
    Section(
        "Speed",
        "Where the time of a step goes, and how many string tokens it trains on.",
        (
            Panel(
                tuple(f"seconds/{phase}" for phase in PHASES),
                Name("seconds per optimizer step, by phase"),
                PHASES,
                kind="areas",
            ),
            Panel(("train/seconds",)),
            Panel(("train/tokens_per_second",)),
        ),
    ),
)
LISTED = {m: panel for section in SECTIONS for panel in section.panels for m in panel.metrics}
# Process-level metrics, used as the x-axis of figures; not worth a curve.
_UNSHOWN = {"train/cpu_seconds"}


def headline_section(headline: Sequence[str]) -> Section:
    """Return the panels of a task's headline metrics, taken from :data:`SECTIONS` if listed there."""
    names = [f"eval/{metric}/*" for metric in headline]
    chosen = dict.fromkeys(LISTED.get(name) or Panel((name,)) for name in names)
    return Section("The task's metrics", "", tuple(chosen))


def other_section(names: Mapping[str, object]) -> Section:
    """Return one panel for each of the named training scalars that no other panel shows."""
    others = [n for n in names if n.startswith("train/") and n not in LISTED.keys() | _UNSHOWN]
    return Section("Other scalars", "", tuple(Panel((name,)) for name in others))


def scale_of(metric: str) -> float:
    """Return the factor that converts an evaluation metric to its unit: 100 for shares, shown in %."""
    return 100.0 if metric.startswith("eval/") and is_share(evaluated(metric)) else 1.0
