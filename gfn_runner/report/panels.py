"""The charts of one run: which scalars belong together; a chart, or a sentence on what it lacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
from gfn_runner.report.names import is_share, name_of, spoken
from gfn_runner.report.pages import Panel

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
        baseline: the class of the baseline that trains; ``None`` for a GFlowNet.
    """

    history: History
    headline: Sequence[str]
    trains: bool = True
    on_the_way: bool = True
    baseline: str | None = None


def draw_panels(shown: Shown) -> tuple[list[Panel], list[str]]:
    """Everything there is data for, and for each chart left out its name and the reason."""
    # What the task puts first comes first, and once.
    first = dict.fromkeys(_SHARED.get(name, name) for name in shown.headline)
    functions = {name: _PANELS.get(name) or _evaluated(name) for name in first}
    drawn, missing = [], []
    for name, function in {**functions, **_PANELS}.items():
        made = function(shown)
        if isinstance(made, Panel):
            drawn.append(made)
        else:
            missing.append(f"{_SPOKEN.get(name) or name_of(name).words}: {made}.")
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


def _one(name: str, reason: str, *, note: str = "", log: bool = False) -> _Function:
    def function(shown: Shown) -> Panel | str:
        curves, known = _lines(shown.history, {name: ""}), name_of(name)
        if not curves:
            return _lacks(shown, reason)
        return panel(known.titled, curves, note=note, log=log, limits=known.limits)

    return function


_Function = Callable[[Shown], Panel | str]


def _lacks(shown: Shown, reason: str) -> str:
    return reason if shown.trains else "the run trains nothing"


# -- evaluations ------------------------------------------------------------------------------------


def evaluated_title(metric: str) -> str:
    """Of a chart; where training logs the same, it says which of the two it is."""
    known = name_of(metric)
    return (replace(known, words=f"{known.words}, evaluated") if metric in _BOTH else known).titled


def _evaluated(metric: str, reason: str = "", *, note: str = "") -> _Function:
    """A metric by evaluation set: the evaluations on the way, and the last one of all conditions."""

    def function(shown: Shown) -> Panel | str:
        history, curves = shown.history, []
        # Evaluations on the way are of the policy alone: so is the last one of an E-step, which an M-step
        # follows, whose answer model has another R.
        end = "e_step" if any(n.startswith("e_step/") for n in history.series) else "final"
        sets = dict.fromkeys((*history.sets(f"eval/{metric}"), *history.sets(f"{end}/{metric}")))
        scale = 100 if is_share(metric) else 1
        legend = []
        for place, group in enumerate(sets):
            color = COLORS[place % len(COLORS)]
            legend.append((color, spoken(group)))
            steps, values = history.get(f"eval/{metric}/{group}")
            if values:
                own = [scale * value for value in values]
                curves.append(Curve(spoken(group), steps, own, color=color))
            steps, values = history.get(f"{end}/{metric}/{group}")
            if values:
                # Evaluated again after resuming, or in each round of EM: the last one counts.
                label = f"{spoken(group)}, all conditions"
                last = [scale * values[-1]]
                curves.append(Curve(label, steps[-1:], last, "marks", color))
        if not curves:
            return _no_evaluation(shown, reason)
        said = _LARGE_DOTS[end] if any(curve.kind == "marks" for curve in curves) else ""
        return panel(
            evaluated_title(metric),
            curves,
            legend=legend,
            note=f"{note} {said}".strip(),
            limits=name_of(metric).limits,
        )

    return function


_BOTH = ("log_reward", "phi_spread", "log_z_bound")
_LARGE_DOTS = {
    "final": "Large dots: the last evaluation, of all conditions.",
    "e_step": "Large dots: the policy of the last E-step, of all conditions. Behind the M-step R is "
    "another: see E + M in the table.",
}


def _no_evaluation(shown: Shown, reason: str) -> str:
    if not shown.trains:
        return "the run trains nothing, so there is no course of it; see the table"
    if any(name.startswith(("eval/", "final/")) for name in shown.history.series):
        return reason or "no evaluation has had it"
    if not shown.on_the_way:
        return "not evaluated yet, and callbacks.evaluation.every=0: only at the end"
    return "not evaluated yet"


# -- training ---------------------------------------------------------------------------------------


# What these methods log as drawn from a buffer is none of their own.
_ROLLOUTS = {"on-policy": "fresh rollout", "replay": "rollout used before"}
_OF_BASELINES: Mapping[str | None, Mapping[str, str]] = {
    "SFT": {"replay": "known strings"},
    "PPO": _ROLLOUTS,
    "GRPO": _ROLLOUTS,
}


def _by_behaviour(name: str, note: str = "", hot: str = "") -> _Function:
    """Dots by where the strings came from; a line where no step is of one kind alone.

    Args:
        name: of the scalar.
        note: below the chart.
        hot: added to it where there are tempered or replayed strings.
    """

    def function(shown: Shown) -> Panel | str:
        curves = []
        for behaviour in BEHAVIOURS:
            steps, values = shown.history.get(name, behaviour)
            if values:
                color = _BEHAVIOUR_COLORS[behaviour]
                label = _OF_BASELINES.get(shown.baseline, {}).get(behaviour, behaviour)
                curves.append(Curve(label, steps, values, "dots", color))
        if not curves:
            curves = _lines(shown.history, {name: "fresh and replayed strings together"})
        if not curves:
            return _lacks(shown, _NO_STEP if name == "train/log_reward" else _NO_SPREAD)
        several = shown.baseline is None and curves[-1].label != BEHAVIOURS[0]
        said = f"{note} {hot}".strip() if several else note
        return panel(name_of(name).titled, curves, note=said)

    return function


def _several(labelled: Mapping[str, str], title: str, reason: str, note: str = "") -> _Function:
    def function(shown: Shown) -> Panel | str:
        curves = _lines(shown.history, labelled)
        return panel(title, curves, note=note) if curves else _lacks(shown, reason)

    return function


def loss_title(baseline: str | None) -> str:
    """What a method's loss is, with its unit; ``None`` for a GFlowNet."""
    return _LOSSES.get(baseline, "loss")


_LOSSES: Mapping[str | None, str] = {
    None: "loss (nats², where φ is balanced)",
    "SFT": "loss: cross-entropy (nats a token)",
    "PPO": "loss: clipped surrogate and value loss",
    "GRPO": "loss: clipped surrogate and KL to the base model",
}


def _loss(shown: Shown) -> Panel | str:
    curves = _lines(shown.history, {"train/loss": ""})
    return (
        panel(loss_title(shown.baseline), curves, log=True) if curves else _lacks(shown, _NO_STEP)
    )


def _from_replay(shown: Shown) -> Panel | str:
    """Each batch is from replay or is not: means over parts of the run, as a share."""
    steps, values = shown.history.get("train/from_replay")
    if not values:
        return _lacks(shown, _NO_STEP)
    if not any(values):
        return "no batch was drawn from the buffer"
    if shown.baseline is not None:
        return f"{shown.baseline} has no buffer"
    known = name_of("train/from_replay")
    return panel(known.titled, [Curve("", steps, values)], most=_PARTS, limits=known.limits)


def _buffer(name: str, reason: str) -> _Function:
    """A scalar of the buffer, where it has ever held a string."""

    def function(shown: Shown) -> Panel | str:
        held = any(shown.history.get("train/buffer_size")[1])
        if not held and shown.history.get("train/buffer_size")[1]:
            return "the buffer has held no string"
        return _one(name, reason)(shown)

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
    for phase, own in found.items():
        top = [low + max(0.0, own.get(step, 0.0)) for step, low in zip(steps, base, strict=True)]
        # One step has no width.
        x, y, low = (steps, top, base) if len(steps) > 1 else ([0, steps[0]], top * 2, base * 2)
        color = COLORS[_PHASES.index(phase)]  # whichever phases a run has
        curves.append(Curve(phase, x, y, "area", color, base=low))
        base = top
    return panel("seconds of an optimizer step, by phase", curves)


_NO_STEP = "no optimizer step yet"
_NO_SPREAD = "no step yet in which a condition has different strings"
_NEVER_FRESH = "no on-policy batch yet"
_NO_TEXT = "the task writes no text, or a single sample of a condition"
_NOT_LOGGED = "the run has logged none"
_PARTS = 24  # of a run, whose shares of replayed batches are shown
# Metrics that are drawn in another one's chart.
_SHARED = {"log_z_bound": "log_z"}
# By metric or scalar: a task's headline may bring one of them to the front.
_PANELS: Mapping[str, _Function] = {
    "train/log_reward": _by_behaviour("train/log_reward"),
    "log_reward": _evaluated("log_reward"),
    "log_likelihood": _evaluated("log_likelihood"),
    "predictive_accuracy": _evaluated("predictive_accuracy", "the task has no answers"),
    "train/phi_spread_terminal": _by_behaviour(
        "train/phi_spread_terminal",
        "0 for an exact policy, and for one that nearly always writes the same string. Conditions whose "
        "strings are all the same do not count.",
        "Hot and replayed strings are ones that the policy hardly writes.",
    ),
    "train/phi_spread": _several(
        {"train/phi_spread": "mean over conditions", "train/phi_spread_max": "largest"},
        name_of("train/phi_spread").titled,
        _NO_SPREAD,
    ),
    "phi_spread": _evaluated("phi_spread", "a single sample of a condition has no spread"),
    "train/log_z": _several(
        {"train/log_z": "mean terminal φ = log Z − KL", "train/log_z_bound": "bound on log Z"},
        "log Z, on-policy batches (nats)",
        _NEVER_FRESH,
    ),
    "train/log_z_gap": _one(
        "train/log_z_gap", _NEVER_FRESH, note="0 for an exact policy, and for equal strings."
    ),
    "log_z": _evaluated_log_z,
    "diversity": _evaluated("diversity", _NO_TEXT),
    "distinct_2": _evaluated("distinct_2", _NO_TEXT),
    "self_bleu": _evaluated("self_bleu", _NO_TEXT),
    "unique": _evaluated("unique", _NO_TEXT),
    "train/loss": _loss,
    "train/skipped": _one("train/skipped", _NOT_LOGGED),
    "train/grad_norm": _one("train/grad_norm", _NO_STEP, log=True),
    "train/lr": _one("train/lr", _NO_STEP),
    "temperatures": _temperatures,
    "train/entropy": _one("train/entropy", _NEVER_FRESH),
    "train/length": _one("train/length", _NO_STEP),
    "train/buffer_size": _buffer("train/buffer_size", _NO_STEP),
    "train/buffer_age": _buffer("train/buffer_age", _NOT_LOGGED),
    "train/from_replay": _from_replay,
    "phases": _phases,
    "train/tokens_per_second": _one("train/tokens_per_second", _NOT_LOGGED),
}
# Charts of several scalars have a name of their own.
_SPOKEN = {
    "train/log_z": "log Z, on-policy batches",
    "log_z": "log Z, evaluated",
    "temperatures": "temperatures",
    "phases": "seconds of an optimizer step, by phase",
}
_USED = {
    "train/phi_spread_max", "train/log_z_bound", "train/reward_temperature",
    "train/exploration_temperature", "train/seconds", "train/cpu_seconds",
}  # fmt: skip


def _others(shown: Shown) -> list[Panel]:
    """A chart for each training scalar that none of the above knows."""
    names = [n for n in shown.history.series if n.startswith("train/")]
    names = [name for name in names if name not in _PANELS and name not in _USED]
    made = [_one(name, "")(shown) for name in names]
    return [own for own in made if isinstance(own, Panel)]
