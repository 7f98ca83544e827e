"""Curves as inline SVG, drawn in milliseconds and without a library; knows no runs.

matplotlib takes a second or more for as many figures as a page has: too much for a process that trains.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTH, HEIGHT = 420, 240
_RIGHT, _TOP, _BOTTOM = 12, 10, 40
_DIGIT = 7.4  # width of one, generously: fonts differ
# Above this many, lines are drawn as means of neighbours and of dots each k-th is drawn.
MOST_POINTS = 240
# Of an axis of powers: what lies further below the largest value is drawn at the lower edge.
_MOST_DECADES = 6
_FEW = 24  # points that get a mark each, so that evaluations can be told apart

COLORS = (
    "#1f77b4", "#d95f02", "#2a9d4a", "#c2304a", "#7b5ea7",
    "#8c564b", "#e377c2", "#6b6b6b", "#a6a01c", "#17a2b8",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """One series of a chart.

    Attributes:
        label: for the legend and as a tooltip.
        x, y: as many of one as of the other; not empty, finite.
        kind: a line; dots; an area that stands on ``base``; or single larger marks.
        color: of CSS.
        dashed: of lines.
        base: of areas, the lower edge.
        owner: of several curves with one owner all stand out where one does; empty for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Literal["line", "dots", "area", "marks"] = "line"
    color: str = COLORS[0]
    dashed: bool = False
    base: Sequence[float] = ()
    owner: str = ""


@dataclass(frozen=True)
class _Axis:
    """Data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def svg(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str = "optimizer step",
    log: bool = False,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> str:
    """An ``<svg>`` that scales with its place on the page.

    Args:
        curves: at least one.
        title: for readers that see no picture.
        x_label: below the axis.
        log: whether the vertical axis is one of powers. Left alone where a value is below 0 or none is
            above it; what lies below :func:`log_floor` is drawn at the lower edge.
        limits: that no value can pass, such as 0 and 100 of shares in %: an axis of equal values ends
            there, too.
    """
    values = [value for curve in curves for value in (*curve.y, *curve.base)]
    log = log and can_be_log(values)
    steps = [value for curve in curves for value in curve.x]
    x_low, x_high = (
        _spread(min(steps), max(steps)) if len(set(steps)) < 2 else (min(steps), max(steps))
    )
    y_low, y_high = _log_range(values) if log else _linear_range(values, limits)
    up = _Axis(y_low, y_high, HEIGHT - _BOTTOM, _TOP, log)
    left = 16 + _DIGIT * max(len(said) for _, said in _up_ticks(up))
    across = _Axis(x_low, x_high, left, WIDTH - _RIGHT)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">',
        _grid(across, up),
        *(_curve(curve, across, up) for curve in curves),
        f'<text class="x" x="{(left + WIDTH - _RIGHT) / 2:.1f}" y="{HEIGHT - 4}">'
        f"{html.escape(x_label)}</text>",
        "</svg>",
    ]
    return "".join(parts)


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve with at most so many points, each the mean of its neighbours; of dots each k-th."""
    k = math.ceil(len(curve.x) / most)
    if k <= 1:
        return curve
    if curve.kind in ("dots", "marks"):
        return _with(curve, curve.x[::k], curve.y[::k], ())
    return _with(curve, _means(curve.x, k), _means(curve.y, k), _means(curve.base, k))


def _with(curve: Curve, x: Sequence[float], y: Sequence[float], base: Sequence[float]) -> Curve:
    return Curve(curve.label, x, y, curve.kind, curve.color, curve.dashed, base, curve.owner)


def _means(values: Sequence[float], k: int) -> list[float]:
    parts = [values[start : start + k] for start in range(0, len(values), k)]
    return [math.fsum(part) / len(part) for part in parts]


# -- axes -----------------------------------------------------------------------------------------


def _spread(low: float, high: float) -> tuple[float, float]:
    """Room around a value that stands alone."""
    room = max(abs(low) * 0.1, 0.5 if low == int(low) else 1e-6)
    return (low - room, high + room) if high - low < 1e-12 + 1e-9 * abs(high) else (low, high)


def _linear_range(values: Sequence[float], limits: tuple[float, float]) -> tuple[float, float]:
    low, high = _spread(min(values), max(values))
    if limits[0] <= min(values) and max(values) <= limits[1]:
        low, high = max(low, limits[0]), min(high, limits[1])
    room = 0.04 * (high - low)
    # What starts at 0 stands on the axis.
    return (0.0 if min(values) >= 0 and low <= room else low - room), high + room


def can_be_log(values: Sequence[float]) -> bool:
    """Whether an axis of powers fits: nothing below 0, and something above it."""
    return min(values) >= 0 and max(values) > 0


def log_floor(values: Sequence[float]) -> float:
    """The lowest value that an axis of powers shows as it is.

    The smallest above 0; where the values span more than six decades, a few tiny ones (a loss before the
    first gradient) would leave all others in a strip at the top. Then a decade below all but a
    twentieth of them, at most six below the largest.
    """
    above = sorted(value for value in values if value > 0)
    least = above[-1] * 10.0**-_MOST_DECADES
    return above[0] if above[0] >= least else max(least, 0.1 * above[len(above) // 20])


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = log_floor(values), max(values)
    room = max(0.04 * math.log10(high / low), 0.05)
    return 10 ** (math.log10(low) - room), 10 ** (math.log10(high) + room)


def ticks(low: float, high: float, wanted: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers within a range, at most about as many as wanted."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    found = [first * step]
    while found[-1] + step <= high + 1e-9 * step:
        found.append((first + len(found)) * step)
    return [tick for tick in found if low - 1e-9 * step <= tick <= high + 1e-9 * step]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within a range; where there are too few of them, 2 and 5 times a power too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1,), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in leading if low <= m * 10.0**p <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 6)]
    # Less than a decade: as on a linear axis.
    return [tick for tick in ticks(low, high, 4) if tick > 0]


def number(value: float, step: float | None = None) -> str:
    """A number as briefly as the distance to its neighbours, ``step``, allows."""
    if value == 0:
        return "0"
    digits = math.ceil(math.log10(abs(value) / step) - 1e-9) + 2 if step else 3
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        text = _as_power(value, max(2, digits - 1))
    elif abs(value) >= 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.{max(3, digits)}g}"
    return text.replace("-", "−")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _as_power(value: float, digits: int) -> str:
    """``2.5·10⁻⁶``; a 1 in front is left out."""
    factor, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    factor = factor.rstrip("0").rstrip(".") if "." in factor else factor
    power = f"10{str(int(exponent)).translate(_RAISED)}"
    return {"1": power, "-1": f"-{power}"}.get(factor, f"{factor}·{power}")


def _up_ticks(up: _Axis) -> list[tuple[float, str]]:
    found = log_ticks(up.low, up.high) if up.log else ticks(up.low, up.high)
    step = found[1] - found[0] if len(found) > 1 and not up.log else None
    return [(tick, number(tick, step)) for tick in found]


def _grid(across: _Axis, up: _Axis) -> str:
    """Lines and their numbers, and the frame that curves are drawn in."""
    left, right = across.start, across.end
    parts = [
        f'<rect class="frame" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" '
        f'height="{HEIGHT - _TOP - _BOTTOM}"/>'
    ]
    for tick, said in _up_ticks(up):
        y = up.at(tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        parts.append(f'<text class="y" x="{left - 5:.1f}" y="{y + 3.5:.1f}">{said}</text>')
    for tick in ticks(across.low, across.high, whole=across.high - across.low >= 1):
        x = across.at(tick)
        said = number(tick)
        # A number at the very end would be cut off by the edge of the picture.
        at = min(x, WIDTH - 1 - _DIGIT * len(said) / 2)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text class="x" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 18}">{said}</text>')
    return "".join(parts)


# -- curves ---------------------------------------------------------------------------------------


def _curve(curve: Curve, across: _Axis, up: _Axis) -> str:
    points = [(across.at(x), up.at(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    last = f"{curve.label}: {number(curve.y[-1])} at {number(curve.x[-1])}"
    title = f"<title>{html.escape(last)}</title>"
    own = f' data-owner="{html.escape(curve.owner, quote=True)}"' if curve.owner else ""
    if curve.kind == "area":
        base = [(across.at(x), up.at(y)) for x, y in zip(curve.x, curve.base, strict=True)]
        outline = _path([*points, *reversed(base)]) + "Z"
        return f'<path class="curve area" d="{outline}" fill="{curve.color}"{own}>{title}</path>'
    if curve.kind in ("dots", "marks"):
        small = 1.6 if len(points) > 2 * _FEW else 2.6
        return _dots(points, curve, small if curve.kind == "dots" else 4.5, own, title)
    dash = ' stroke-dasharray="5 3"' if curve.dashed else ""
    look = f'stroke="{curve.color}"{dash}{own}'
    line = f'<path class="curve line" d="{_path(points)}" {look}>{title}</path>'
    # A single point is no line.
    marked = len(points) == 1 or (len(points) <= _FEW and not own)
    return (line if len(points) > 1 else "") + (
        _dots(points, curve, 2.2, own, title) if marked else ""
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _dots(
    points: Sequence[tuple[float, float]], curve: Curve, radius: float, own: str, title: str
) -> str:
    # Round ends of lines without length: one element, however many dots there are.
    d = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return (
        f'<path class="curve dots" d="{d}" stroke="{curve.color}" stroke-width="{2 * radius:g}"{own}>'
        f"{title}</path>"
    )
