"""Conversion of shell arguments to Hydra's, including the overrides of a run or sweep to resume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gfn_runner.errors import UserError
from gfn_runner.runtime.files import read_yaml
from gfn_runner.runtime.overrides import (
    OVERRIDES_FILE,
    as_meant,
    by_itself,
    config_flags,
    flags_and_words,
    parsed,
    verbatim,
)
from gfn_runner.runtime.sweep_record import RECORD, Sweep


def hydra_arguments(argv: Sequence[str]) -> list[str]:
    """Return Hydra's arguments for a command line, given without the program's name.

    With ``resume=<folder>`` or ``run=<folder>``, the overrides of that run come first.

    Raises:
        UserError: if an argument cannot be parsed, or the folder does not contain a run.
    """
    flags, words = flags_and_words(argv)
    if not {"--shell-completion", "-sc"}.isdisjoint(flags):
        return list(argv)
    words = [as_meant(word) for word in words]
    overrides = parsed(words)
    named = [
        override
        for override in overrides
        if override.key_or_group in ("resume", "run")
        and not override.is_sweep_override()
        and override.value() is not None
    ]
    if named and (named[-1].key_or_group, _text(named[-1])) != ("resume", "auto"):
        multirun = not {"-m", "--multirun"}.isdisjoint(flags)
        flags += config_flags(Path(os.path.expanduser(_text(named[-1]))), flags)
        words = (_sweep_lines if multirun else _run_lines)(overrides, named[-1])
    return [*flags, *words]


def _text(override: Override) -> str:
    return str(OmegaConf.create({"value": override.value()}).value)


def _run_lines(overrides: Sequence[Override], given: Override) -> list[str]:
    """Return the overrides of the run to resume or use, followed by the new ones."""
    key, folder = str(given.key_or_group), Path(os.path.expanduser(_text(given)))
    file = folder / OVERRIDES_FILE
    # The functions of os.path accept any name, even one that is too long.
    if not os.path.isfile(file):
        missing = f"has no {OVERRIDES_FILE}" if os.path.isdir(folder) else "is not a folder"
        raise UserError.one(
            key,
            f"given {str(folder)!r}, which {missing}",
            "the folder of a run, outputs/<task>/<date>/<time>",
        )
    try:
        lines = read_yaml(file, list)  # an empty list is saved as []: an empty file is damaged
    except ValueError as error:
        raise UserError.one(
            key,
            f"{file} is unreadable: {error}",
            "the command line that started the run, as a list",
            "restore it, one line `- key=value` per override",
        ) from None
    saved = by_itself(list(map(str, lines)))
    before, now = _task_of(parsed(saved)), _task_of(overrides)
    if now is not None and now != before:
        raise UserError.one(
            key,
            f"{folder} is a run of task {before!r}, and task={now} was given",
            f"task={before}, or no task",
        )
    own = [f"hydra.run.dir={verbatim(str(folder))}"] if key == "resume" else []
    return [*saved, *(str(override.input_line) for override in overrides), *own]


def _sweep_lines(overrides: Sequence[Override], given: Override) -> list[str]:
    """Return the overrides of the sweep to resume, followed by the new ones."""
    folder = Path(os.path.expanduser(_text(given)))
    if given.key_or_group != "resume":
        raise UserError.one(str(given.key_or_group), "given with --multirun", "one run at a time")
    sweep = Sweep.read(folder)
    if not sweep.jobs:
        raise UserError.one(
            "resume",
            f"given {str(folder)!r} with --multirun, but there is no sweep in it",
            f"the folder of a sweep, with its {RECORD}; without --multirun the folder of a run",
        )
    new = [str(override.input_line) for override in overrides if override is not given]
    return [*sweep.overrides, *new, f"hydra.sweep.dir={verbatim(str(folder))}"]


def _task_of(overrides: Sequence[Override]) -> Any:
    chosen = [override.value() for override in overrides if override.key_or_group == "task"]
    return chosen[-1] if chosen else None
