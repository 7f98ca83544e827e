"""``config.yaml`` of a run, with what a report reads of it checked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.runtime.files import read_yaml

# What a report reads, and the types that a run writes.
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
    """The resolved config of a run.

    Raises:
        UserError: if the file cannot be read, or is not what a run writes.
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
    # A page of many runs that is written again and again would do little else.
    return read_yaml(path, dict)


def _wrong_entry(config: Mapping[str, Any]) -> str:
    """What is not as a run writes it; empty if all of it is. Sections may be missing."""
    for key, kinds in _READ.items():
        found: Any = config
        for name in key.split("."):
            if found is not None and not isinstance(found, Mapping):
                return f"a section of {key} is no mapping"
            found = (found or {}).get(name)
        if not isinstance(found, kinds) and (found is not None or key == "task._target_"):
            return f"{key} is {found!r:.40}"
    return ""
