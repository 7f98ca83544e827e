"""The headline metrics of a run, and the metric that a search optimizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapidfuzz import process

from gfn_runner.errors import UserError
from gfn_runner.report.table import in_order, is_share, row_labels, shown_number

_SHOWN = 12
# Of these the smaller is the better; of all others the greater.
_SMALLER = frozenset(
    (
        "kl", "kl_over_floor", "tv", "exact_kl", "exact_tv", "invalid_share", "phi_spread",
        "phi_spread_terminal", "self_bleu", "loss", "seconds", "minutes", "cpu_minutes",
        "peak_memory_gib", "peak_gpu_memory_gib",
    )
)  # fmt: skip


def direction_of(metric: str) -> str:
    """Which way a metric gets better: ``minimize`` or ``maximize``."""
    return "minimize" if _SMALLER & set(metric.split("/")) else "maximize"


def headline_numbers(headline: Sequence[str], metrics: Mapping[str, float]) -> dict[str, float]:
    """A run's headline metrics, averaged over evaluation sets; what was not measured is left out.

    Args:
        headline: names without row and evaluation set, e.g. ``vote_accuracy``.
    """
    found = {name: _mean(f"{_row(metrics)}/{name}", metrics) for name in headline}
    return {name: value for name, value in found.items() if value is not None}


def evaluation_line(headline: Sequence[str], step: int, metrics: Mapping[str, float]) -> str:
    """``evaluation at step 20 (news / stories): bleu 0.41 / 0.38, legal_share 98.4 / 100.0 %``.

    Every metric has its values in the order of the evaluation sets, with a dash where it has no
    meaning; shares are in %, as in the tables.

    Args:
        headline: names without evaluation set; what was not measured is left out.
        metrics: ``<metric>/<evaluation set>``, without a row's prefix.
    """
    values: dict[str, dict[str, float]] = {}
    for name in in_order(metrics, headline):
        metric, _, group = name.partition("/")
        values.setdefault(metric, {})[group] = metrics[name]
    groups = list(dict.fromkeys(group for found in values.values() for group in found))
    parts = []
    for name, found in values.items():
        shown = (shown_number(name, found[g]) if g in found else "–" for g in groups)
        parts.append(f"{name} {' / '.join(shown)}{' %' if is_share(name) else ''}")
    sets = f" ({' / '.join(groups)})" if any(groups) else ""
    return f"evaluation at step {step}{sets}" + (f": {', '.join(parts)}" if parts else "")


def memory_at_most(metrics: Mapping[str, float]) -> str:
    """Peak memory of a run by its kind, as text; empty where it was not measured."""
    kinds = {"run/peak_memory_gib": "host", "run/peak_gpu_memory_gib": "GPU"}
    parts = [
        f"{metrics[key]:.2f} GiB of {kind} memory" for key, kind in kinds.items() if key in metrics
    ]
    return " and ".join(parts)


def optimized_value(named: str | None, default: str, metrics: Mapping[str, float]) -> float | None:
    """What a run returns to whoever compares it with others.

    Args:
        named: ``log_reward`` (of the run's own row, averaged over evaluation sets), or with a row or
            group in front: ``base_3_shot/vote_accuracy``, ``train/loss``. ``None``: the default.
        default: the task's own; it may be missing (no valid sample, say).

    Returns:
        ``None`` if nothing was named and the task's own was not measured.

    Raises:
        UserError: if the metric that was named is not there.
    """
    if named is None:
        return _mean(f"{_row(metrics)}/{default}", metrics)
    full = named if "/" in named else f"{_row(metrics)}/{named}"
    value = _mean(full, metrics)
    if value is None:
        # Without evaluation sets, which an average leaves out.
        known = sorted({"/".join(name.split("/")[:2]) for name in metrics})
        near = [name for name, *_ in process.extract(full, known, limit=_SHOWN)]
        raise UserError.one(
            "optimized_metric",
            f"given {named!r}, which this run has not measured",
            f"a name in metrics.json, e.g. {', '.join(near)}",
        )
    return value


def _row(metrics: Mapping[str, float]) -> str:
    # Without training the first row is the run's.
    return next(iter(row_labels(metrics)), "final")


def _mean(name: str, metrics: Mapping[str, float]) -> float | None:
    if name in metrics:
        return metrics[name]
    values = [value for key, value in metrics.items() if key.startswith(f"{name}/")]
    return sum(values) / len(values) if values else None
