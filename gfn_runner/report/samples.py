"""Samples of evaluations as JSON lines, and as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.report.table import Table, markdown
from gfn_runner.runtime.json_lines import read_lines, write_lines

_CONDITIONS, _SINGLES = 12, 3  # number of rows and of samples per cell in samples.md


@with_config(ConfigDict(extra="allow"))
class _Record(TypedDict, total=False):
    """The fields of a line that reports read."""

    group: Required[str]
    condition: Required[str]
    singles: Required[list[str]]
    votes: list[str]
    log_reward: list[float]
    log_pf: list[float]
    support_log_reward: list[float]
    target: dict[str, float]


_RECORDS: TypeAdapter[Any] = TypeAdapter(list[_Record])


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read a file written by :func:`write_samples`; return an empty list if it does not exist.

    Raises:
        ValueError: names the first line that is not a valid record.
    """
    try:
        return _RECORDS.validate_python(read_lines(path))
    except ValidationError as error:
        number, *field = error.errors()[0]["loc"]
        wrong = field[0] if field else "it"
        raise ValueError(f"record {int(number) + 1}: {wrong} is not what a run writes") from None


def write_samples(path: Path, samples: Sequence[ConditionSamples]) -> None:
    """Write one line per condition with its votes and singles; log R and log q are in nats."""
    write_lines(path, (sample_record(sample) for sample in samples))


def write_sample_table(path: Path, rows: Mapping[str, Sequence[ConditionSamples]]) -> None:
    """Write a Markdown table of the first conditions, with a few samples of each row.

    Args:
        rows: mapping from label to samples; all for the same conditions, in the same order.
    """
    # Omit rows that generate no string, such as direct answers.
    rows = {
        label: drawn for label, drawn in rows.items() if any(any(s.singles) for s in drawn)
    } or dict(rows)
    cells = [
        [drawn[0].condition.prompt]
        + ["\n".join(text.strip() or "(empty)" for text in s.singles[:_SINGLES]) for s in drawn]
        for drawn in list(zip(*rows.values(), strict=False))[:_CONDITIONS]
    ]
    table = Table(["prompt", *rows], cells, numeric=False)
    path.write_text(markdown(table) + "\n", encoding="utf-8")


def sample_record(sample: ConditionSamples, most: int | None = None) -> dict[str, Any]:
    """Return a line of ``samples.jsonl``; ``most`` limits the number of votes and singles."""
    condition = sample.condition
    # Figures of tasks over a table of values need the target distribution.
    target = {"target": condition.facts["target"]} if "target" in condition.facts else {}
    # If all strings can be enumerated, log Z is known.
    support: dict[str, Any] = {}
    if sample.support_log_reward:
        support["support_log_reward"] = [round(value, 4) for value in sample.support_log_reward]
    if sample.posterior_log_pf:
        if sample.posterior_log_z is not None:
            support["posterior_log_z"] = round(sample.posterior_log_z, 4)
        support["posterior_log_reward"] = [round(v, 4) for v in sample.posterior_log_reward]
        support["posterior_log_pf"] = [round(v, 4) for v in sample.posterior_log_pf]
    return {
        "group": condition.group,
        "condition": condition.key,
        "prompt": condition.prompt,
        "answer": condition.answer,
        **target,
        "votes": list(sample.votes)[:most],
        "singles": list(sample.singles)[:most],
        "log_reward": [round(value, 4) for value in sample.log_reward[:most]],
        "log_pf": [round(value, 4) for value in sample.log_pf[:most]],
        **support,
    }


def first_of_each_set(records: Sequence[dict[str, Any]], each: int) -> list[dict[str, Any]]:
    """Return the first ``each`` records of every evaluation set."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sets.setdefault(str(record.get("group")), []).append(record)
    return [record for own in sets.values() for record in own[:each]]
