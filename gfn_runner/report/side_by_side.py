"""What methods write for the same conditions, its log R, and how the task judges it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.task import Task
from gfn_runner.errors import UserError
from gfn_runner.report.equal_compute import chosen_from
from gfn_runner.report.methods import Method
from gfn_runner.report.names import is_share, readable
from gfn_runner.report.summary import Section, task_of
from gfn_runner.report.table import Table, hundredths

_CONDITIONS = 3
_HEADER = (
    "condition", "method", "most frequent sample", "share of samples", "log R (nats)", "judged",
)  # fmt: skip
# Of several strings, or of something else than the string itself.
_NOT_OF_ONE = ("vote_", "greedy_", "predictive_", "invalid_", "found_", "all_found_")

Key = tuple[str, str]


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
    drawn = {method: records for method, records in drawn.items() if records}
    if not drawn:
        return "no method left single samples"
    met = Counter(key for records in drawn.values() for key in records)
    # Sorting keeps the order in which conditions were met among those that as many methods have.
    chosen = sorted(met, key=lambda key: -met[key])[:_CONDITIONS]
    judges: dict[str, _Judge] = {}
    rows = []
    for key in chosen:
        record = next(records[key] for records in drawn.values() if key in records)
        answer = record.get("answer")
        shown = str(record["prompt"]).strip() + (f" [{answer}]" if answer is not None else "")
        for method, records in drawn.items():
            if key in records:
                run = method.runs[0]
                data = json.dumps([run.config["task"], run.seed], sort_keys=True, default=str)
                if data not in judges:
                    judges[data] = _Judge(task_of(run)[0], run.seed)
                most = _most_frequent(records[key], key, judges[data])
                rows.append((shown, method.label, *most))
                shown = ""
    return Table(_HEADER, rows, numeric=False).without_empty()


def _shown(methods: Sequence[Method]) -> list[Method]:
    """All but those that differ from another one by fewer strings to choose from."""
    most: dict[str, int] = {}
    for method in methods:
        if chosen := chosen_from(method):
            most[chosen[0]] = max(chosen[1], most.get(chosen[0], 0))
    return [m for m in methods if not (chosen := chosen_from(m)) or chosen[1] == most[chosen[0]]]


def _most_frequent(record: Mapping[str, Any], key: Key, judge: _Judge) -> tuple[str, str, str, str]:
    text, n = Counter(record["singles"]).most_common(1)[0]
    rewards = record.get("log_reward") or ()
    at = record["singles"].index(text)
    log_reward = hundredths(rewards[at]) if at < len(rewards) else ""
    share = f"{100 * n / len(record['singles']):.0f} %"
    return text.strip() or "(empty)", share, log_reward, judge(key, text)


class _Judge:
    """Asks a task's own metrics about one string.

    They need the condition as the task made it. Samples do not hold that, so its data are read again.
    """

    def __init__(self, task: Task | None, seed: int):
        self._task = task
        try:
            found = task.load(seed).evaluation if task else ()
        except UserError:
            found = ()  # its files are gone since
        self._conditions: dict[Key, Condition] = {(c.group, c.key): c for c in found}

    def __call__(self, key: Key, text: str) -> str:
        """A metric and whether the string meets it; empty where no metric is of a single string."""
        condition = self._conditions.get(key)
        if self._task is None or condition is None:
            return ""
        one = ConditionSamples(condition, (), (text,), (0.0,), (0.0,))
        try:
            measured = self._task.metrics([one])
        except (LookupError, ValueError, TypeError, ArithmeticError):
            return ""  # it needs more than the string
        for name in self._task.headline:
            value = measured.get(f"{name}/{condition.group}")
            if is_share(name) and not name.startswith(_NOT_OF_ONE) and value in (0.0, 1.0):
                title = readable(name.removesuffix("_share"))
                return f"{title}: {'yes' if value else 'no'}"
        return ""
