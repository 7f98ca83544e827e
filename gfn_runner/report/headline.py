"""Headline metrics of a run, and the metric that a hyperparameter search optimizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rapidfuzz import process

from gfn_runner.errors import UserError
from gfn_runner.report.table import in_order, is_share, row_labels, shown_number

_SHOWN = 12
# Metrics for which smaller is better; for all others, greater is better.
_SMALLER = frozenset(
    (
        "kl", "kl_over_floor", "tv", "exact_kl", "exact_tv", "invalid_share", "phi_spread",
        "phi_spread_terminal", "self_bleu", "loss", "seconds", "minutes", "cpu_minutes",
        "peak_memory_gib", "peak_gpu_memory_gib",
    )
)  # fmt: skip


def direction_of(metric: str) -> str:
    """Return the direction in which a metric improves: ``minimize`` or ``maximize``."""
    return "minimize" if _SMALLER & set(metric.split("/")) else "maximize"


def headline_numbers(headline: Sequence[str], metrics: Mapping[str, float]) -> dict[str, float]:
    """Average a run's headline metrics over its evaluation sets; omit those that were not measured.

    Args:
        headline: metric names without row and evaluation set, e.g. ``vote_accuracy``.
    """
    found = {name: _mean(f"{_row(metrics)}/{name}", metrics) for name in headline}
    return {name: value for name, value in found.items() if value is not None}


def evaluation_line(headline: Sequence[str], step: int, metrics: Mapping[str, float]) -> str:
    """Format ``evaluation at step 20 (news / stories): bleu 0.41 / 0.38, legal_share 98.4 / 100.0 %``.

    The values of a metric follow the order of the evaluation sets, with a dash for sets on which it is
    undefined; shares are in %, as in the tables.

    Args:
        headline: metric names without evaluation set; those that were not measured are omitted.
        metrics: values by ``<metric>/<evaluation set>``, without a row prefix.
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
    """Format a run's peak host and GPU memory; return an empty string if neither was measured."""
    kinds = {"run/peak_memory_gib": "host", "run/peak_gpu_memory_gib": "GPU"}
    parts = [
        f"{metrics[key]:.2f} GiB of {kind} memory" for key, kind in kinds.items() if key in metrics
    ]
    return " and ".join(parts)


def optimized_value(named: str | None, default: str, metrics: Mapping[str, float]) -> float | None:
    """Return the value that the run reports for comparison with other runs, e.g. in a search.

    Args:
        named: ``log_reward`` (the run's own row, averaged over evaluation sets), or a name with a row or
            group prefix: ``base_3_shot/vote_accuracy``, ``train/loss``. ``None`` uses ``default``.
        default: the task's default metric, which may be missing (e.g. without any valid sample).

    Returns:
        The value; ``None`` if ``named`` is ``None`` and the default metric was not measured.

    Raises:
        UserError: if the named metric was not measured.
    """
    if named is None:
        return _mean(f"{_row(metrics)}/{default}", metrics)
    full = named if "/" in named else f"{_row(metrics)}/{named}"
    value = _mean(full, metrics)
    if value is None:
        # Drop evaluation sets, over which the value is averaged.
        known = sorted({"/".join(name.split("/")[:2]) for name in metrics})
        near = [name for name, *_ in process.extract(full, known, limit=_SHOWN)]
        raise UserError.one(
            "optimized_metric",
            f"given {named!r}, which this run has not measured",
            f"a name in metrics.json, e.g. {', '.join(near)}",
        )
    return value


def _row(metrics: Mapping[str, float]) -> str:
    # Without training, the first row is the run's own.
    return next(iter(row_labels(metrics)), "final")


def _mean(name: str, metrics: Mapping[str, float]) -> float | None:
    if name in metrics:
        return metrics[name]
    values = [value for key, value in metrics.items() if key.startswith(f"{name}/")]
    return sum(values) / len(values) if values else None
