"""Comparison of what methods generate for the same conditions, with log R."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_runner.report.equal_compute import chosen_from
from gfn_runner.report.methods import Method
from gfn_runner.report.summary import Section
from gfn_runner.report.table import Table, hundredths

_CONDITIONS = 3
_HEADER = ("condition", "method", "most frequent sample", "share of samples", "log R (nats)")


def sample_table(section: Section) -> Table | str:
    """Tabulate each method's most frequent single sample, for the conditions that most methods share.

    Args:
        section: samples are from the first seed of each method; of rows that pick one of n strings, only the
            largest n is shown.

    Returns:
        A table, or a sentence that says why there is none.
    """
    drawn = {
        method: {
            (record["group"], record["condition"]): record
            for record in method.runs[0].samples(method.row)
            if any(record["singles"])
        }
        for method in _shown(section.methods)
    }
    met = Counter(key for records in drawn.values() for key in records)
    # Sorting is stable: conditions that equally many methods share keep their order of appearance.
    rows = [
        row
        for key in sorted(met, key=lambda key: -met[key])[:_CONDITIONS]
        for row in _rows({m.label: records[key] for m, records in drawn.items() if key in records})
    ]
    return Table(_HEADER, rows, numeric=False) if rows else "no method left single samples"


def _shown(methods: Sequence[Method]) -> list[Method]:
    """Drop methods that differ from another one only by picking from fewer strings."""
    most: dict[str, int] = {}
    for method in methods:
        if chosen := chosen_from(method):
            most[chosen[0]] = max(chosen[1], most.get(chosen[0], 0))
    return [m for m in methods if not (chosen := chosen_from(m)) or chosen[1] == most[chosen[0]]]


def _rows(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return one condition's rows, one per method, with the condition in the first one only."""
    rows: list[tuple[str, ...]] = []
    for label, record in records.items():
        text, n = Counter(record["singles"]).most_common(1)[0]
        rewards = record.get("log_reward") or ()
        at = record["singles"].index(text)
        answer = record.get("answer")
        shown = str(record["prompt"]).strip() + (f" [{answer}]" if answer is not None else "")
        share = f"{100 * n / len(record['singles']):.0f} %"
        log_reward = hundredths(rewards[at]) if at < len(rewards) else ""
        rows.append(("" if rows else shown, label, text.strip() or "(empty)", share, log_reward))
    return rows
