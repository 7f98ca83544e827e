"""Samples as lines of JSON: what the policy wrote in the final evaluation; draws what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.report.table import Table, markdown
from gfn_runner.runtime.json_lines import read_lines, write_lines

_CONDITIONS, _SINGLES = 12, 3  # in samples.md


@with_config(ConfigDict(extra="allow"))
class _Record(TypedDict, total=False):
    """What reports read of a line."""

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
    """What :func:`write_samples` wrote; empty if there is no file.

    Raises:
        ValueError: naming the first line that is no record of samples.
    """
    try:
        return _RECORDS.validate_python(read_lines(path))
    except ValidationError as error:
        number, *field = error.errors()[0]["loc"]
        wrong = field[0] if field else "it"
        raise ValueError(f"record {int(number) + 1}: {wrong} is not what a run writes") from None


def write_samples(path: Path, samples: Sequence[ConditionSamples]) -> None:
    """Each line: one condition with its votes and singles; log R and log q in nats."""
    write_lines(path, (sample_record(sample) for sample in samples))


def write_sample_table(path: Path, rows: Mapping[str, Sequence[ConditionSamples]]) -> None:
    """A Markdown table of the first conditions with a few samples of each row.

    Args:
        rows: label to samples; all of the same conditions, in the same order.
    """
    # A row that answers at once has written nothing.
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
    """A line of ``samples.jsonl``; with ``most``, only so many votes and singles."""
    condition = sample.condition
    # What a figure needs to know of a table of values.
    target = {"target": condition.facts["target"]} if "target" in condition.facts else {}
    # Where all strings can be listed, log Z is known.
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
    """The first records of each evaluation set, ``each`` of every one of them."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sets.setdefault(str(record.get("group")), []).append(record)
    return [record for own in sets.values() for record in own[:each]]
