"""Headline metrics of an evaluation in one line, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gfn_runner.report.table import is_share, shown_number

_ABSENT = "–"


def evaluation_line(headline: Sequence[str], step: int, metrics: Mapping[str, float]) -> str:
    """``evaluation at step 20 (news / stories): bleu 0.41 / 0.38, legal_share 98.4 / 100.0 %``.

    Every metric has its values in the order of the evaluation sets, with a dash where it has no
    meaning; shares are in %, as in the tables.

    Args:
        headline: names without evaluation set; what was not measured is left out.
        step: optimizer steps made.
        metrics: ``<metric>/<evaluation set>``, without a row's prefix.
    """
    values: dict[str, dict[str, float]] = {}
    for name in headline:
        for full, value in metrics.items():
            metric, _, group = full.partition("/")
            if metric == name:
                values.setdefault(name, {})[group] = value
    groups = list(dict.fromkeys(group for found in values.values() for group in found))
    parts = []
    for name, found in values.items():
        shown = (shown_number(name, found[g]) if g in found else _ABSENT for g in groups)
        parts.append(f"{name} {' / '.join(shown)}{' %' if is_share(name) else ''}")
    sets = f" ({' / '.join(groups)})" if any(groups) else ""
    return f"evaluation at step {step}{sets}" + (f": {', '.join(parts)}" if parts else "")
