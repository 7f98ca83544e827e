"""The charts of one run: which scalars belong together; a chart, or a sentence on what it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gfn_runner.report.charts import (
    COLORS,
    MOST_POINTS,
    Curve,
    can_be_log,
    log_floor,
    number,
    svg,
    thinned,
)
from gfn_runner.report.history import BEHAVIOURS, History
from gfn_runner.report.pages import Panel
from gfn_runner.report.table import is_share

_PHASES = ("sample", "reward", "policy", "objective", "backward", "other")
_BEHAVIOUR_COLORS = dict(zip(BEHAVIOURS, (COLORS[0], COLORS[1], "#9a9a9a"), strict=True))


@dataclass(frozen=True)
class Shown:
    """What is known of a run when its charts are drawn.

    Attributes:
        history: all scalars.
        headline: metrics that the task puts first.
        trains: whether the run trains a policy at all.
        on_the_way: whether it is evaluated while it trains.
    """

    history: History
    headline: Sequence[str]
    trains: bool = True
    on_the_way: bool = True


def draw_panels(shown: Shown) -> tuple[list[Panel], list[str]]:
    """Everything there is data for, and for each chart left out its name and the reason."""
    drawn, missing = [], []
    for name, function in {**_headlines(shown), **_PANELS}.items():
        made = function(shown)
        if isinstance(made, Panel):
            drawn.append(made)
        else:
            missing.append(f"{name}: {made}.")
    return drawn + _others(shown), missing


# -- one chart --------------------------------------------------------------------------------------


def panel(
    title: str,
    curves: Sequence[Curve],
    *,
    note: str = "",
    log: bool = False,
    legend: Sequence[tuple[str, str]] | None = None,
    most: int = MOST_POINTS,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Panel:
    """A chart of optimizer steps; its legend is of the curves' labels unless it is given.

    Args:
        title: with the unit.
        curves: at least one.
        note: below the chart.
        log: draw powers of ten, where no value is below 0.
        legend: in place of the curves' own.
        most: points of a curve.
        limits: that no value can pass.
    """
    for kinds, said in ((("line", "area"), "Means of"), (("dots",), "One dot in")):
        longest = max((len(curve.x) for curve in curves if curve.kind in kinds), default=0)
        if longest > most:
            note = f"{note} {said} {math.ceil(longest / most)} steps.".strip()
    curves = [thinned(curve, most) for curve in curves]
    if log:
        note = f"{note} {_below(curves)}".strip()
    if legend is None:
        legend = [(curve.color, curve.label) for curve in curves]
        legend = [] if len(legend) == 1 and not legend[0][1] else legend
    # A curve that is named by the title has a name for its tooltip too.
    return Panel(title, svg(curves, title=title, log=log, limits=limits), legend, note)


def _below(curves: Sequence[Curve]) -> str:
    """What an axis of powers cannot show as it is; empty if it shows everything."""
    values = [value for curve in curves for value in curve.y]
    if not can_be_log(values):
        return "Not in powers of ten: some values are below 0." if min(values) < 0 else ""
    floor = log_floor(values)
    low = [value for value in values if value < floor]
    if not low:
        return ""
    said = "1 value lies" if len(low) == 1 else f"{len(low)} values lie"
    return f"{said} lower than the axis, down to {number(min(low))}: drawn at its lower edge."


def _lines(history: History, labelled: Mapping[str, str]) -> list[Curve]:
    """A line for each scalar that was logged."""
    curves = []
    for place, (name, label) in enumerate(labelled.items()):
        steps, values = history.get(name)
        if values:
            curves.append(Curve(label, steps, values, color=COLORS[place % len(COLORS)]))
    return curves


def _one(name: str, title: str, reason: str, *, note: str = "", log: bool = False) -> _Function:
    def function(shown: Shown) -> Panel | str:
        curves = _lines(shown.history, {name: ""})
        return panel(title, curves, note=note, log=log) if curves else _lacks(shown, reason)

    return function


_Function = Callable[[Shown], Panel | str]


def _lacks(shown: Shown, reason: str) -> str:
    return reason if shown.trains else "the run trains nothing"


def spoken(name: str) -> str:
    return name.replace("_", " ").replace("/", ", ")


# -- evaluations ------------------------------------------------------------------------------------


def _headlines(shown: Shown) -> dict[str, _Function]:
    return {spoken(name): _evaluated(name, spoken(name)) for name in shown.headline}


def _evaluated(metric: str, title: str, reason: str = "", *, note: str = "") -> _Function:
    """A metric by evaluation set: the evaluations on the way, and the last one of all conditions."""

    def function(shown: Shown) -> Panel | str:
        history, curves = shown.history, []
        sets = dict.fromkeys((*history.sets(f"eval/{metric}"), *history.sets(f"final/{metric}")))
        scale = 100 if is_share(metric) else 1
        legend = []
        for place, group in enumerate(sets):
            color = COLORS[place % len(COLORS)]
            legend.append((color, spoken(group)))
            for kind, way in (("eval", "line"), ("final", "marks")):
                steps, values = history.get(f"{kind}/{metric}/{group}")
                label = spoken(group) + (", all conditions" if kind == "final" else "")
                if values and way == "line":
                    curves.append(Curve(label, steps, [scale * v for v in values], color=color))
                elif values:
                    # Evaluated again after resuming: the last one counts.
                    own = [scale * values[-1]]
                    curves.append(Curve(label, steps[-1:], own, "marks", color))
        if not curves:
            return _no_evaluation(shown, reason)
        big = any(curve.kind == "marks" for curve in curves)
        said = "Large dots: the last evaluation, of all conditions." if big else ""
        unit = " (%)" if is_share(metric) else ""
        return panel(title + unit, curves, legend=legend, note=f"{note} {said}".strip())

    return function


def _no_evaluation(shown: Shown, reason: str) -> str:
    if not shown.trains:
        return "the run trains nothing, so there is no course of it; see the table"
    if any(name.startswith(("eval/", "final/")) for name in shown.history.series):
        return reason or "no evaluation has had it"
    if not shown.on_the_way:
        return "not evaluated yet, and callbacks.evaluation.every=0: only at the end"
    return "not evaluated yet"


# -- training ---------------------------------------------------------------------------------------


def _by_behaviour(name: str, title: str, note: str = "") -> _Function:
    """Dots by where the strings came from; a line where no step is of one kind alone."""

    def function(shown: Shown) -> Panel | str:
        curves = []
        for behaviour in BEHAVIOURS:
            steps, values = shown.history.get(name, behaviour)
            if values:
                color = _BEHAVIOUR_COLORS[behaviour]
                curves.append(Curve(behaviour, steps, values, "dots", color))
        if not curves:
            curves = _lines(shown.history, {name: "fresh and replayed strings together"})
        if not curves:
            return _lacks(shown, "no optimizer step yet")
        return panel(title, curves, note=note)

    return function


def _several(labelled: Mapping[str, str], title: str, reason: str, note: str = "") -> _Function:
    def function(shown: Shown) -> Panel | str:
        curves = _lines(shown.history, labelled)
        return panel(title, curves, note=note) if curves else _lacks(shown, reason)

    return function


def _temperatures(shown: Shown) -> Panel | str:
    curves = _lines(shown.history, {"train/reward_temperature": "reward temperature T"})
    steps, values = shown.history.get("train/exploration_temperature")
    if values:
        label = "exploration (1: on-policy)"
        curves.append(Curve(label, steps, values, "dots", COLORS[1]))
    if not curves:
        return _lacks(shown, "no optimizer step yet")
    return panel("temperatures", curves)


def _evaluated_log_z(shown: Shown) -> Panel | str:
    curves, legend = [], []
    for place, group in enumerate(shown.history.sets("eval/log_z")):
        color = COLORS[place % len(COLORS)]
        legend.append((color, spoken(group)))
        for name, dashed in (("log_z", False), ("log_z_bound", True)):
            steps, values = shown.history.get(f"eval/{name}/{group}")
            if values:
                label = f"{spoken(group)}, {'bound' if dashed else 'mean φ'}"
                curves.append(Curve(label, steps, values, color=color, dashed=dashed))
    if not curves:
        return _no_evaluation(shown, "a single sample of a condition tells nothing of log Z")
    note = "Mean φ = log Z − KL (line), importance-weighted bound (dashed); the gap closes."
    return panel("log Z, evaluated (nats)", curves, legend=legend, note=note)


def _phases(shown: Shown) -> Panel | str:
    """Seconds of a step as areas on each other; a phase that a step has not had takes no time."""
    found = {}
    for phase in _PHASES:
        steps, values = shown.history.get(f"seconds/{phase}")
        if values:
            found[phase] = dict(zip(steps, values, strict=True))
    if not found:
        return _lacks(shown, "no optimizer step yet")
    steps = sorted(set().union(*found.values()))
    base = [0.0] * len(steps)
    curves = []
    for place, (phase, own) in enumerate(found.items()):
        top = [low + max(0.0, own.get(step, 0.0)) for step, low in zip(steps, base, strict=True)]
        # One step has no width.
        x, y, low = (steps, top, base) if len(steps) > 1 else ([0, steps[0]], top * 2, base * 2)
        curves.append(Curve(phase, x, y, "area", COLORS[place], base=low))
        base = top
    return panel("seconds of an optimizer step, by phase", curves)


_NO_STEP = "no optimizer step yet"
_NEVER_FRESH = "no on-policy batch yet"
_PANELS: Mapping[str, _Function] = {
    "log R in training": _by_behaviour("train/log_reward", "mean log R in training (nats)"),
    "log R, evaluated": _evaluated("log_reward", "mean log R, evaluated (nats)"),
    "log-likelihood": _evaluated(
        "log_likelihood", "log-likelihood under the base model, evaluated (nats)"
    ),
    "φ spread of whole strings": _by_behaviour(
        "train/phi_spread_terminal",
        "φ spread, whole strings (nats)",
        "0 for an exact policy, and for one that nearly always writes the same string. Conditions whose "
        "strings are all the same do not count. Hot and replayed strings are ones that it hardly writes.",
    ),
    "φ spread of all states": _several(
        {"train/phi_spread": "mean over conditions", "train/phi_spread_max": "largest"},
        "φ spread, all states (nats)",
        _NO_STEP,
    ),
    "φ spread, evaluated": _evaluated(
        "phi_spread",
        "φ spread, evaluated (nats)",
        "a single sample of a condition has no spread",
    ),
    "log Z": _several(
        {"train/log_z": "mean terminal φ = log Z − KL", "train/log_z_bound": "bound on log Z"},
        "log Z, on-policy batches (nats)",
        _NEVER_FRESH,
    ),
    "log Z, evaluated": _evaluated_log_z,
    "diversity": _evaluated(
        "diversity",
        "diversity: 1 − mean pairwise cosine",
        "the task writes no text, or a single sample of a condition",
    ),
    "different samples": _evaluated(
        "unique",
        "share of different samples of a condition",
        "the task writes no text, or a single sample of a condition",
    ),
    "loss": _one("train/loss", "loss (nats², where φ is balanced)", _NO_STEP, log=True),
    "skipped steps": _one(
        "train/skipped",
        "steps skipped: a loss or gradient that is not finite",
        "the run has logged no train/skipped",
    ),
    "gradient": _one("train/grad_norm", "norm of the gradient", _NO_STEP, log=True),
    "learning rate": _one("train/lr", "learning rate", _NO_STEP),
    "temperatures": _temperatures,
    "entropy": _one("train/entropy", "entropy: −log q, on-policy (nats)", _NEVER_FRESH),
    "length": _one("train/length", "length of strings (tokens)", _NO_STEP),
    "buffer": _one("train/buffer_size", "replay buffer (strings)", _NO_STEP),
    "age of the buffer": _one(
        "train/buffer_age",
        "age of the replay buffer (optimizer steps)",
        "the run has logged no train/buffer_age",
    ),
    "speed by phase": _phases,
    "tokens per second": _one(
        "train/tokens_per_second",
        "tokens per second",
        "the run has logged no train/tokens_per_second",
    ),
}
_USED = {
    "train/log_reward", "train/phi_spread_terminal", "train/phi_spread", "train/phi_spread_max",
    "train/log_z", "train/log_z_bound", "train/log_z_gap", "train/loss", "train/grad_norm", "train/lr",
    "train/reward_temperature", "train/exploration_temperature", "train/entropy", "train/length",
    "train/buffer_size", "train/buffer_age", "train/from_replay", "train/seconds",
    "train/tokens_per_second", "train/skipped", "train/cpu_seconds",
}  # fmt: skip


def _others(shown: Shown) -> list[Panel]:
    """A chart for each training scalar that none of the above knows."""
    names = [n for n in shown.history.series if n.startswith("train/") and n not in _USED]
    return [panel(spoken(n.removeprefix("train/")), _lines(shown.history, {n: ""})) for n in names]
