"""PNG figures of how close policies are to their posterior: calibration and evidence."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gfn_runner.metrics.evidence import importance_bound, mean_phi
from gfn_runner.report.figure_layout import color_of, legend, panels
from gfn_runner.report.runs import Run
from gfn_runner.report.summary import Section

_MOST_DOTS = 3000


def calibration(section: Section) -> Figure | str:
    """Plot log q + log Z of samples against log R/T; an exact policy lies on the identity line.

    Circles are samples from the posterior; those far below the line are strings that the policy misses. log Z
    of a condition is exact if all of its strings can be enumerated. Otherwise it is the largest available
    importance-weighted estimate, from the posterior's draws, this method's samples or those of others: the
    estimate of a policy that never draws some strings lacks their mass, and with its own estimate alone, a
    policy that always writes the same string would lie on the line.
    """
    known = _log_z(section)
    dots = [(m, *_dots(m.runs[0], m.row, known)) for m in section.methods if m.is_trained]
    shown = [(method, own, posterior) for method, own, posterior in dots if own]
    if not shown:
        return "no trained method left single samples with both log R and log q"
    figure, all_axes = panels(len(shown), width=4.4, height=4.4)
    for axes, (method, own, posterior) in zip(all_axes, shown, strict=True):
        x, y = zip(*own, strict=True)
        axes.plot(x, y, ".", color=color_of(section, method), markersize=3, alpha=0.5)
        if posterior:
            at, q = zip(*posterior, strict=True)
            axes.plot(at, q, "o", color="k", fillstyle="none", markersize=4, alpha=0.4)
            x, y = (*x, *at), (*y, *q)
        axes.axline((fmean(x), fmean(x)), slope=1, color="k", linestyle="--", linewidth=0.8)
        _same_scales(axes, (*x, *y))
        axes.set(xlabel="log R / T (nats)", ylabel="log q + log Z (nats)")
        title = f"{method.label}: {len(own)} distinct samples (•)"
        if posterior:
            title += f", {len(posterior)} from the posterior (○)"
        axes.set_title(textwrap.fill(title, 48), fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def evidence(section: Section) -> Figure | str:
    """Plot estimates of log Z per condition against the exact value, where all strings can be enumerated."""
    shown = [(m, list(_evidence(m.runs[0], m.row))) for m in section.methods if m.is_trained]
    shown = [(method, points) for method, points in shown if points]
    if not shown:
        return "no trained method's samples hold the log R of all strings (support_log_reward)"
    figure, axes = plt.subplots(figsize=(6, 4.6), layout="constrained")
    for method, points in shown:
        exact, mean, bound = zip(*points, strict=True)
        color = color_of(section, method)
        axes.plot(exact, mean, "o", color=color, label=method.label)
        axes.plot(exact, bound, "^", color=color, fillstyle="none")
    axes.set_title("mean φ (●) and importance-weighted bound (△)", fontsize=9)
    # A single condition, or many with the same log Z, give a column of dots: keep the axes square.
    _same_scales(axes, [value for _, points in shown for own in points for value in own])
    at = shown[0][1][0][0]
    axes.axline((at, at), slope=1, color="k", linestyle="--", linewidth=0.8)
    axes.set(xlabel="exact log Z (nats)", ylabel="estimate (nats)")
    axes.grid(alpha=0.3)
    legend(figure, [axes])
    return figure


def _same_scales(axes: Axes, values: Sequence[float]) -> None:
    """Give both axes the same range, so that the identity line is at 45°."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=5))  # few: labels must not overlap


_Posterior = tuple[str, str]
_Dot = tuple[float, float]


def _posterior(run: Run, record: Mapping[str, Any]) -> _Posterior:
    """Return all that a condition's posterior depends on: task, base model, T and the condition."""
    model = run.section("lm").get("name")
    settings = json.dumps([run.config["task"], model, run.temperature], sort_keys=True, default=str)
    return settings, f"{record['group']}/{record['condition']}"


def _log_z(section: Section) -> dict[_Posterior, float]:
    """Return log Z of each condition: exact if possible, else the largest estimate from any method's samples.

    Every estimate is a lower bound in expectation, so the largest one is the closest.
    """
    exact: dict[_Posterior, float] = {}
    bounds: dict[_Posterior, float] = {}
    for method in section.methods:
        run = method.runs[0]
        for record in run.samples(method.row):
            at, found = _posterior(run, record), _finite(record, run.temperature)
            if support := record.get("support_log_reward"):
                exact[at] = float(np.logaddexp.reduce(np.asarray(support) / run.temperature))
            estimates = [record.get("posterior_log_z")]
            if len(found) > 1:
                estimates.append(importance_bound([r - q for _, r, q in found]))
            for estimate in (e for e in estimates if e is not None):
                bounds[at] = max(estimate, bounds.get(at, -math.inf))
    return bounds | exact


def _dots(run: Run, row: str, log_z: Mapping[_Posterior, float]) -> tuple[list[_Dot], list[_Dot]]:
    """Return log R/T and log q + log Z (nats) of distinct samples, and of samples from the posterior."""
    own: list[_Dot] = []
    posterior: list[_Dot] = []
    for record in run.samples(row):
        at = log_z.get(_posterior(run, record), math.nan)
        found = _finite(record, run.temperature)
        if len(found) > 1:
            own += {text: (r, q + at) for text, r, q in found}.values()
        log_r = [r / run.temperature for r in record.get("posterior_log_reward") or ()]
        pairs = set(zip(log_r, record.get("posterior_log_pf") or (), strict=False))
        posterior += sorted((r, q + at) for r, q in pairs if math.isfinite(r + q + at))
    return _thinned(own), _thinned(posterior)


def _thinned(dots: list[_Dot]) -> list[_Dot]:
    return dots[:: math.ceil(len(dots) / _MOST_DOTS) or 1]


def _evidence(run: Run, row: str) -> Iterator[tuple[float, float, float]]:
    """Yield exact log Z, mean φ and importance-weighted bound of each condition, in nats."""
    for record in run.samples(row):
        support = [value / run.temperature for value in record.get("support_log_reward") or ()]
        found = _finite(record, run.temperature)
        if support and found:
            phi = [r - q for _, r, q in found]
            exact = float(np.logaddexp.reduce(support))
            yield exact, mean_phi(phi), importance_bound(phi)


def _finite(record: Mapping[str, Any], temperature: float) -> list[tuple[str, float, float]]:
    # A string that was truncated where it cannot end has probability 0.
    return [
        (text, r / temperature, q)
        for text, r, q in zip(
            record["singles"], record["log_reward"], record["log_pf"], strict=False
        )
        if math.isfinite(r) and math.isfinite(q)
    ]
