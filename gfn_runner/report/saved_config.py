"""The ``config.yaml`` of a run: validation of the entries that reports read, and values derived from them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gfn_runner.algorithms.base import Algorithm
from gfn_runner.errors import UserError
from gfn_runner.runtime.files import read_yaml

# The entries that reports read, with the types that runs write.
_READ: Mapping[str, type | tuple[type, ...]] = {
    "task._target_": str,
    "seed": int,
    "lm.name": str,
    "objective._target_": str,
    "baseline._target_": str,
    "trainer.max_steps": int,
    "trainer.accumulate_grad_batches": int,
    "sampling.n_conditions": int,
    "sampling.n_samples": int,
    "evaluation.votes": int,
    "em.rounds": int,
    "callbacks.report.refresh": (int, float),
    "callbacks.evaluation.every_n_steps": int,
    "callbacks.reward_tempering": dict,
}


def read_config(path: Path) -> dict[str, Any]:
    """Read the resolved config of a run.

    Raises:
        UserError: if the file cannot be read or is not in the format that runs write.
    """
    try:
        config = _parsed(path.resolve(), path.stat().st_mtime_ns)
        wrong = _wrong_entry(config)
    except (OSError, ValueError) as error:
        wrong = str(error)
    if wrong:
        allowed = "the resolved config of a run, with task._target_"
        raise UserError.one(str(path), f"cannot be read ({wrong})", allowed)
    return config


@lru_cache(maxsize=256)
def _parsed(path: Path, written: int) -> dict[str, Any]:
    # Cached, since rewriting a page of many runs would spend most of its time here.
    return read_yaml(path, dict)


def _wrong_entry(config: Mapping[str, Any]) -> str:
    """Describe the first invalid entry; return an empty string if there is none. Sections may be missing."""
    for key, kinds in _READ.items():
        found: Any = config
        for name in key.split("."):
            if found is not None and not isinstance(found, Mapping):
                return f"a section of {key} is no mapping"
            found = (found or {}).get(name)
        if not isinstance(found, kinds) and (found is not None or key == "task._target_"):
            return f"{key} is {found!r:.40}"
    return ""


def callback_arguments(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the arguments of a run's callback; empty if the callback was removed."""
    node = (config.get("callbacks") or {}).get(name) or {}
    return {key: value for key, value in node.items() if key != "_target_"}


def trains(config: Mapping[str, Any], unknown: bool = True) -> bool:
    """Return whether a run of this config trains; ``unknown`` if its baseline cannot be imported."""
    baseline = config.get("baseline")
    if not baseline:
        return True
    kind = imported(str(baseline.get("_target_", "")))
    return unknown if kind is None else issubclass(kind, Algorithm)


def steps_wanted(config: Mapping[str, Any]) -> int | None:
    """Return the total number of optimizer steps of a run; ``None`` if it does not train."""
    steps = (config.get("trainer") or {}).get("max_steps")
    if steps is None or not trains(config, unknown=False):
        return None
    return int(steps) * max(1, int((config.get("em") or {}).get("rounds") or 0))


def imported(target: str) -> Any:
    """Import a class by its path; return ``None`` if it no longer exists."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
