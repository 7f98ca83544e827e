"""From the words of the shell to Hydra's arguments, those of the run or sweep to go on with included."""

from __future__ import annotations

import contextlib
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from gfn_runner.errors import UserError
from gfn_runner.runtime.files import read_yaml
from gfn_runner.runtime.overrides import (
    HYDRA_FILE,
    HYDRA_SWEEP_FILE,
    OVERRIDES_FILE,
    as_meant,
    by_itself,
    parsed,
    verbatim,
)
from gfn_runner.runtime.sweep_record import RECORD, Sweep


def hydra_arguments(argv: Sequence[str]) -> list[str]:
    """What Hydra gets for a command line without the program's name.

    With ``resume=<folder>`` and ``run=<folder>`` the overrides of the run there come first.

    Raises:
        UserError: if a word cannot be read, or the folder holds no run.
    """
    # Hydra's own call of its parser refuses flags that stand between overrides.
    given = get_args_parser().parse_intermixed_args(list(argv))
    flags = [word for word in argv if word not in given.overrides]
    if given.shell_completion:
        return list(argv)
    words = [as_meant(word) for word in given.overrides]
    overrides = parsed(words)
    named = [
        override
        for override in overrides
        if override.key_or_group in ("resume", "run")
        and not override.is_sweep_override()
        and override.value() is not None
    ]
    if named and (named[-1].key_or_group, _text(named[-1])) != ("resume", "auto"):
        flags += _config_flags(Path(os.path.expanduser(_text(named[-1]))), given)
        words = (_sweep_lines if given.multirun else _run_lines)(overrides, named[-1])
    return [*words, *flags]


def _config_flags(folder: Path, given: Namespace) -> list[str]:
    """``--config-dir`` and ``--config-name`` of a run, or of the runs of a sweep, where none is given now."""
    flags: list[str] = []
    for file in (folder / HYDRA_FILE, folder / HYDRA_SWEEP_FILE):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            hydra = read_yaml(file, dict)["hydra"]
            sources = {s["provider"]: s["path"] for s in hydra["runtime"]["config_sources"]}
            if given.config_dir is None and sources.get("command-line"):
                flags.append(f"--config-dir={sources['command-line']}")
            if given.config_name is None:
                flags.append(f"--config-name={hydra['job']['config_name']}")
            break
    return flags


def _text(override: Override) -> str:
    return str(OmegaConf.create({"value": override.value()}).value)


def _run_lines(overrides: Sequence[Override], given: Override) -> list[str]:
    """The overrides of the run to be resumed or used, then the new ones."""
    key, folder = str(given.key_or_group), Path(os.path.expanduser(_text(given)))
    file = folder / OVERRIDES_FILE
    try:
        lines = read_yaml(file, list)  # an empty list is written [], so an empty file has lost them
    except ValueError as error:
        raise UserError.one(
            key,
            f"{file} is unreadable: {error}",
            "the folder of a run, outputs/<task>/<date>/<time>, with the command line that it was begun "
            "with, as a list",
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
    """The overrides of the sweep to be resumed, then the new ones."""
    folder = Path(os.path.expanduser(_text(given)))
    if given.key_or_group != "resume":
        raise UserError.one(str(given.key_or_group), "given with --multirun", "one run at a time")
    sweep = Sweep.read(folder)
    if not sweep.jobs:
        raise UserError.one(
            "resume",
            f"given {str(folder)!r} with --multirun, and no sweep lies there",
            f"the folder of a sweep, with its {RECORD}; without --multirun the folder of a run",
        )
    new = [str(override.input_line) for override in overrides if override is not given]
    return [*sweep.overrides, *new, f"hydra.sweep.dir={verbatim(str(folder))}"]


def _task_of(overrides: Sequence[Override]) -> Any:
    chosen = [override.value() for override in overrides if override.key_or_group == "task"]
    return chosen[-1] if chosen else None
