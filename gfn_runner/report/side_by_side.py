"""What methods write for the same conditions, and its log R."""

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
    """The most frequent single sample of each method, for conditions that most methods have.

    Args:
        section: its methods' first seeds are shown; of rows that choose one of n strings, those of the
            largest n.

    Returns:
        A table; or a sentence on why there is none.
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
    # Sorting keeps the order in which conditions were met among those that as many methods have.
    rows = [
        row
        for key in sorted(met, key=lambda key: -met[key])[:_CONDITIONS]
        for row in _rows({m.label: records[key] for m, records in drawn.items() if key in records})
    ]
    return Table(_HEADER, rows, numeric=False) if rows else "no method left single samples"


def _shown(methods: Sequence[Method]) -> list[Method]:
    """All but those that differ from another one by fewer strings to choose from."""
    most: dict[str, int] = {}
    for method in methods:
        if chosen := chosen_from(method):
            most[chosen[0]] = max(chosen[1], most.get(chosen[0], 0))
    return [m for m in methods if not (chosen := chosen_from(m)) or chosen[1] == most[chosen[0]]]


def _rows(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One condition's rows, by method; the condition in the first one alone."""
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
