"""Samples as lines of JSON: what the policy wrote in the final evaluation; draws what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gfn_runner.callbacks.replay_buffer import fitting_demonstrations
from gfn_runner.config.schemas import EvaluationSettings
from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import ConditionSamples
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.distributed.ranks import is_first
from gfn_runner.evaluation.draw import draw_answers
from gfn_runner.module import GFlowNetModule
from gfn_runner.runtime.json_lines import write_lines
from gfn_runner.runtime.seeds import torch_generator_for

_MOST_CONDITIONS = 64
_MOST_SINGLES = 1000


def write_samples(path: Path, samples: Sequence[ConditionSamples]) -> None:
    """Each line: one condition with its votes and singles; log R and log q in nats."""
    write_lines(path, (sample_record(sample) for sample in samples))


def write_sample_table(
    path: Path, rows: Mapping[str, Sequence[ConditionSamples]], *, conditions: int = 12, n: int = 3
) -> None:
    """A Markdown table of the first conditions with a few samples of each row.

    Args:
        path: the file.
        rows: label to samples; all of the same conditions, in the same order.
        conditions: how many of them are shown.
        n: samples of each.
    """
    # A row that answers at once has written nothing.
    rows = {
        label: drawn for label, drawn in rows.items() if any(any(s.singles) for s in drawn)
    } or dict(rows)
    lines = ["| prompt | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    columns = list(rows.values())
    for drawn in list(zip(*columns, strict=False))[:conditions]:
        cells = ["<br>".join(_cell(text) for text in s.singles[:n]) for s in drawn]
        lines.append(f"| {_cell(drawn[0].condition.prompt)} | " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    shown = text.strip().replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return "<br>".join(shown.splitlines()) or "(empty)"


def sample_record(sample: ConditionSamples, most: int | None = None) -> dict[str, Any]:
    """A line of ``samples.jsonl``; with ``most``, only so many votes and singles."""
    condition = sample.condition
    # What a figure needs to know of a table of values.
    target = {"target": condition.facts["target"]} if "target" in condition.facts else {}
    # Where all strings can be listed, log Z is known.
    support: dict[str, Any] = {}
    if sample.support_log_reward:
        support["support_log_reward"] = [round(value, 4) for value in sample.support_log_reward]
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


@torch.no_grad()
def write_demonstrations(
    path: Path,
    module: GFlowNetModule,
    conditions: Sequence[Condition],
    options: EvaluationSettings,
) -> None:
    """Log R of demonstrations beside log R of the policy's samples for the same conditions.

    Writes nothing where no condition has a demonstration. Every rank draws, and has to call it; the first
    one writes.
    """
    chosen = [condition for condition in conditions if condition.demonstrations][:_MOST_CONDITIONS]
    if not chosen:
        return
    trajectories, _ = fitting_demonstrations(module, chosen)
    if not len(trajectories):
        return
    log_reward_BS = module.log_reward(chosen, trajectories)
    log_reward_B = log_reward_BS.gather(1, trajectories.length_B[:, None])[:, 0].tolist()
    generator = torch_generator_for(module.lm.device, "demonstrations", module.seed)
    options = dataclasses.replace(options, votes=0, singles=min(options.singles, _MOST_SINGLES))
    drawn = draw_answers(
        module.lm,
        module.task,
        module.evaluation_rule,
        chosen,
        options,
        generator,
        name="samples beside demonstrations",
    )
    places = trajectories.condition_B.tolist()
    records = []
    for place, sample in enumerate(drawn):
        rows = [row for row, at in enumerate(places) if at == place]
        records.append(
            {
                **sample_record(sample),
                "demonstrations": [_as_written(module, trajectories, row) for row in rows],
                "demonstration_log_reward": [round(log_reward_B[row], 4) for row in rows],
            }
        )
    if is_first():
        write_lines(path, records)


def _as_written(module: GFlowNetModule, trajectories: Trajectories, row: int) -> str:
    """A string as its author writes it, without a tool's answers."""
    is_action = trajectories.is_action_BT[row].tolist()
    ids = trajectories.ids(row)
    return module.lm.decode([token for token, own in zip(ids, is_action, strict=False) if own])
