"""Override lines of a run: which of a command line belong to it, and how it is made again by itself."""

from __future__ import annotations

from collections.abc import Sequence

# What a command is to do, where, and by which launcher; none of it makes the run another one.
_PASSING = ("resume=", "mode=", "run=", "prompt=", "n=", "answers=", "dry_run=", "hydra.", "hydra/")
_BY_ITSELF = "hydra.mode=RUN"


def kept_overrides(lines: Sequence[str], task: str) -> list[str]:
    """What a run's ``overrides.yaml`` holds: one line a key, the last one given, in their order.

    Args:
        lines: of the command line, without flags.
        task: the one that was chosen, named in any case.
    """
    latest: dict[str, str] = {}
    for line in lines:
        if line.lstrip("+").startswith(_PASSING):
            continue
        key = line.split("=", 1)[0].lstrip("+")
        latest.pop(key, None)
        latest[key] = line
    named = [] if any(key == "task" for key in latest) else [f"task={task}"]
    return by_itself([*named, *latest.values()])


def by_itself(lines: Sequence[str]) -> list[str]:
    """Lines that make one run of a sweep and not the sweep: ``sweep=…`` alone would begin it anew."""
    if not is_of_sweep(lines) or _BY_ITSELF in lines:
        return list(lines)
    own: list[str] = []
    for line in lines:
        own += [line, _BY_ITSELF] if _chooses_sweep(line) else [line]
    return own


def is_of_sweep(lines: Sequence[str]) -> bool:
    """Whether a line is ``sweep=…``: a config that makes a command a sweep."""
    return any(map(_chooses_sweep, lines))


def _chooses_sweep(line: str) -> bool:
    key, _, value = line.lstrip("+").partition("=")
    return key == "sweep" and value != "null"
