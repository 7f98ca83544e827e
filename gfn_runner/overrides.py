"""Override lines of a run: which of a command line belong to it, and how it is made again by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    if not any(map(_chooses_sweep, lines)) or any(line.startswith("hydra.mode=") for line in lines):
        return list(lines)
    return list(_behind_sweep(lines, _BY_ITSELF))


def over_seeds(lines: Sequence[str]) -> list[str]:
    """Lines that, with ``-m`` and several seeds behind them, make one run of a sweep once a seed."""
    rest = [line for line in lines if line != _BY_ITSELF]
    # sweep=search searches, whatever it is given.
    return list(_behind_sweep(rest, "hydra/sweeper=basic"))


def _behind_sweep(lines: Sequence[str], added: str) -> Iterator[str]:
    for line in lines:
        yield line
        if _chooses_sweep(line):
            yield added


def _chooses_sweep(line: str) -> bool:
    key, _, value = line.lstrip("+").partition("=")
    return key == "sweep" and value != "null"
