"""Grouping of runs into methods, one run per seed, and the labels of methods.

A method is a task together with the settings that its numbers depend on. Rows without training (the base
model with few-shot examples, resampled, …) depend on fewer settings than a trained policy, so runs of
several methods may have measured the same such row.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gfn_runner.report.names import by_number
from gfn_runner.report.runs import Run
from gfn_runner.report.table import row_labels

TRAINED = {"final": "", "e_step": "E-step"}
# Settings that affect which conditions are used, speed or output, but not the distribution of the numbers.
_NO_EFFECT = (
    "seed", "output", "resume", "dry_run", "mode", "run", "prompt", "n", "answers", "logger",
    "num_threads", "float32_matmul_precision", "trainer.log_every_n_steps", "trainer.profiler",
    "lm.device", "lm.packed_rewards",
    "lm.max_tokens_per_forward", "lm.recompute_above", "callbacks.progress", "callbacks.checkpoint",
    "callbacks.non_finite_steps", "callbacks.training_log",
    "callbacks.wandb_media", "callbacks.preemption", "callbacks.report",
    "callbacks.evaluation.every_n_steps", "evaluation.during",
    "evaluation.singles_during", "evaluation.batch", "evaluation.rows",
    "evaluation.memory_gib",
    "evaluation.baseline_shots", "evaluation.baseline_temperatures",
)  # fmt: skip
# Settings without effect on untrained rows, and settings without effect on those of a trained policy.
_ONLY_TRAINING = (
    "objective", "optimizer", "scheduler", "sampling", "trainer", "em", "lm.lora",
    "callbacks.replay_buffer",
    "callbacks.reward_tempering.start", "callbacks.reward_tempering.steps", "callbacks.reward_tempering.shape",
)  # fmt: skip
_ONLY_OTHER_ROWS = ("evaluation.baseline_limit", "evaluation.resampled")
_OF_ANY_RUN = re.compile(r"base_.*|direct_.*|resampled")
_MOST_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Method:
    """One row of the comparison table.

    Attributes:
        row: prefix of its metrics.
        runs: one run per seed, sorted by seed.
        dropped: runs that also measured this row, but for a seed for which another run is used.
    """

    label: str
    row: str
    runs: tuple[Run, ...]
    dropped: tuple[Run, ...] = ()

    @property
    def is_trained(self) -> bool:
        return self.row in TRAINED

    @property
    def commits(self) -> list[str]:
        return list(dict.fromkeys(commit for run in self.runs for commit in run.commits))

    @property
    def names(self) -> list[str]:
        """``<metric>/<evaluation set>`` of everything measured in any of its runs."""
        own = [name.partition("/") for run in self.runs for name in run.metrics]
        return list(dict.fromkeys(name for row, _, name in own if row == self.row))

    def values(self, name: str) -> list[float]:
        """Return ``<metric>/<evaluation set>`` for each seed that has it."""
        key = f"{self.row}/{name}"
        return [run.metrics[key] for run in self.runs if key in run.metrics]


@dataclass
class _Draft:
    row: str
    name: str
    settings: Mapping[str, Any]
    runs: list[Run] = field(default_factory=list)


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Group the finished runs of one task into methods: trained ones first, then rows in table order."""
    drafts: dict[str, _Draft] = {}
    rows = {row for run in runs for row in run.rows}
    names = row_labels(rows)
    others = sorted(rows - names.keys(), key=by_number)
    names |= {row: row.replace("_", " ") for row in others}
    for run, row in [(own, row) for own in runs for row in own.rows]:
        settings = _settings(run, row)
        name = names[row]
        if row in TRAINED:
            part = TRAINED[row] or ("E + M" if "e_step" in run.rows else "")
            name = (run.baseline or "GFlowNet") + (f", {part}" if part else "")
        key = json.dumps([row, name, settings], sort_keys=True, default=str)
        drafts.setdefault(key, _Draft(row, name, settings)).runs.append(run)
    order = list(names)
    separate = sorted(
        drafts.values(),
        key=lambda d: (d.row not in TRAINED, order.index(d.row), d.name != "GFlowNet"),
    )
    # Settings that affect rows with and without training, and whose values differ between these methods.
    own = (*_ONLY_TRAINING, *_ONLY_OTHER_ROWS, "baseline")
    shared = _differing([_without(draft.settings, own) for draft in separate], separate)
    # Keep methods that were measured on the same data and model together.
    blocks = [[draft.settings.get(key) for key in shared] for draft in separate]
    separate = [
        separate[at] for at in sorted(range(len(blocks)), key=lambda at: blocks.index(blocks[at]))
    ]
    return [
        Method(label, draft.row, *_one_a_seed(draft.runs))
        for draft, label in zip(separate, _labels(separate, shared), strict=True)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config by their dotted keys."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        leaves |= flat(value, f"{key}.") if isinstance(value, Mapping) and value else {key: value}
    return leaves


def _settings(run: Run, row: str) -> dict[str, Any]:
    """Return the settings on which the numbers of a row depend."""
    without = (*_NO_EFFECT, *(_ONLY_OTHER_ROWS if row in TRAINED else _ONLY_TRAINING))
    if row not in TRAINED and not row.startswith("resampled"):
        without += ("evaluation.resampled",)
    # Older configs have no baselines, and rows that any run may have do not depend on the baseline.
    if not run.config.get("baseline") or _OF_ANY_RUN.fullmatch(row):
        without += ("baseline",)
    leaves = _without(flat(run.config), without)
    if isinstance(teacher := leaves.get("baseline.samples_of"), str):
        leaves["baseline.samples_of"] = _without_seed(teacher, run.seed)
    if row in TRAINED and not leaves.get("em.rounds"):
        leaves = _without(leaves, ("em",)) | {"em.rounds": 0}
    return leaves


def _without_seed(folder: str, seed: int) -> str:
    """Mask the seed in another run's path: each seed learns from the samples of the same seed."""
    parts = folder.split("/")
    for at in reversed(range(len(parts))):
        if re.fullmatch(rf"(seed[_=-]?)?{seed}", parts[at]):
            return "/".join([*parts[:at], "*", *parts[at + 1 :]])
    return folder


def _without(leaves: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    starts = tuple(f"{name}." for name in names)
    return {k: v for k, v in leaves.items() if k not in names and not k.startswith(starts)}


def _one_a_seed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Return, per seed, the run made for the row, or else the newest; and the runs that are not used."""
    # The last run of a seed wins; among equal ones, that is the one given first.
    best = {run.seed: run for run in sorted(reversed(runs), key=_rank)}
    used = tuple(best[seed] for seed in sorted(best))
    return used, tuple(run for run in runs if run not in used)


def _rank(run: Run) -> tuple[bool, float]:
    return run.baseline is not None and "final" not in run.rows, run.ended


def _labels(drafts: Sequence[_Draft], shared: Sequence[str]) -> list[str]:
    """Label each method by its name and the settings in which the given methods differ."""
    alike: dict[tuple[str, str], list[_Draft]] = defaultdict(list)
    for draft in drafts:
        alike[draft.row, draft.name].append(draft)
    keys = {at: {*_differing([d.settings for d in own], own), *shared} for at, own in alike.items()}
    labels: list[str] = []
    same: Counter[str] = Counter()
    for draft in drafts:
        own = keys[draft.row, draft.name]
        shown = [_setting(key, draft) for key in draft.settings if key in own]
        if len(shown) > _MOST_SHOWN:
            shown[_MOST_SHOWN:] = [f"and {len(shown) - _MOST_SHOWN} more"]
        label = f"{draft.name} ({', '.join(shown)})" if shown else draft.name
        same[label] += 1
        labels.append(f"{label} #{same[label]}" if same[label] > 1 else label)
    return labels


def _differing(settings: Sequence[Mapping[str, Any]], drafts: Sequence[_Draft]) -> list[str]:
    """Return keys whose values (or presence) differ; keys below a class are compared only within it."""
    found = []
    for key in dict.fromkeys(key for own in settings for key in own):
        target = f"{key.partition('.')[0]}._target_"
        values: dict[str, set[str]] = {}
        for own, draft in zip(settings, drafts, strict=True):
            kind = "" if key == target else str(draft.settings.get(target))
            values.setdefault(kind, set()).add(json.dumps(own.get(key, "absent"), default=str))
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    return found


def _setting(key: str, draft: _Draft) -> str:
    name = key.removesuffix("._target_")
    value = draft.settings[key]
    if name != key:
        return f"{name}={str(value).rpartition('.')[2]}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    # Shorten a path to its end, and a long list to its beginning.
    text = "…/" + "/".join(text.split("/")[-2:]) if text.count("/") > 2 else text
    return f"{key}={text if len(text) <= 40 else text[:39] + '…'}"
