"""What Hydra refuses, as user errors: every unknown key and choice, with the nearest name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf
from rapidfuzz import process

from gfn_runner.cli.hooks import HYDRA_ERRORS
from gfn_runner.config.compose import CONF
from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.runtime.overrides import parsed


def explained(error: Exception, argv: Sequence[str]) -> UserError:
    """The user errors for which Hydra has refused a command line.

    Hydra names the first one. Here the config is composed of the choices that exist, and all other
    overrides are compared with it.
    """
    given = get_args_parser().parse_args(list(argv))
    problems: list[Problem] = []
    with contextlib.suppress(*HYDRA_ERRORS):
        name, folder = given.config_name or "config", given.config_dir
        problems = _unknown(parsed(given.overrides), name, folder)
    if problems:
        return UserError(problems)
    cause = error.__cause__
    where = str(getattr(cause, "full_key", None) or "command line")
    reason = " ".join(str(error if cause is None else f"{error} {cause}").split())
    return UserError.one(where, reason, fix="see python -m gfn_runner --help")


def _unknown(overrides: Sequence[Override], name: str, folder: str | None) -> list[Problem]:
    places = create_config_search_path(str(CONF))
    if folder is not None:
        places.prepend("command-line", f"file://{os.path.abspath(folder)}", anchor="schema")
    loader = ConfigLoaderImpl(places)
    options = loader.get_group_options

    def choices(group: str) -> Iterator[str]:
        yield from options(group, ObjectType.CONFIG)
        if group.split("/")[0] == "experiment":
            # Elsewhere an inner folder is a group of its own (callbacks/replay_buffer=…).
            for inner in options(group, ObjectType.GROUP):
                yield from (f"{inner}/{choice}" for choice in choices(f"{group}/{inner}"))

    problems: list[Problem] = []
    chosen, keys = [], []
    groups = options("", ObjectType.GROUP)
    for override in overrides:
        group = override.key_or_group
        if "/" in group and group not in groups and not options(group, ObjectType.CONFIG):
            parent = group.rpartition("/")[0]
            known = [f"{parent}/{inner}" for inner in options(parent, ObjectType.GROUP)] or groups
            fix = did_you_mean(group, known)
            problems.append(Problem(group, "unknown group", ", ".join(known), fix))
        elif "." in group or not options(group, None):
            keys.append(override)
        elif not override.is_delete():
            found = list(_choice_problems(override, sorted(choices(group))))
            problems += found
            if not found and not override.is_sweep_override():
                chosen.append(str(override.input_line))
    composed = loader.load_configuration(name, chosen, RunMode.RUN)
    # Unresolved: a run's folder is made where its name is resolved.
    base = OmegaConf.to_container(composed, resolve=False)
    for override in keys:
        problems += _key_problems(override, base, groups)
    return problems


def _choice_problems(override: Override, known: Sequence[str]) -> Iterator[Problem]:
    if override.is_sweep_override():
        values = [str(value) for value in override.sweep_string_iterator()]
    else:
        values = [] if override.value() is None else [str(override.value())]
    group = override.key_or_group
    for value in values:
        if value not in known and value != "null":
            fix = did_you_mean(value, known, f"{group}=")
            yield Problem(group, f"given {value!r}", ", ".join(known), fix)


def _key_problems(override: Override, base: Any, groups: Sequence[str]) -> Iterator[Problem]:
    """The first part of a key that the config does not have."""
    if override.is_add() or override.is_force_add():
        return
    node = base
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict):
            return  # a value that the check of all values explains
        if part not in node:
            yield _unknown_key(override, depth, node, groups)
            return
        node = node[part]


def _unknown_key(
    override: Override, depth: int, node: dict[Any, Any], groups: Sequence[str]
) -> Problem:
    parts = override.key_or_group.split(".")
    known = [str(key) for key in node if not str(key).startswith("_")]
    if depth == 0:
        if parts[0] in groups:
            return Problem(parts[0], "no choice is made", "", f"{parts[0]}=<a choice> beside it")
        known = [key for key in dict.fromkeys([*known, *groups]) if key != "hydra"]
    allowed = ", ".join(known) or "none with this choice of the group"
    if "_target_" in node:
        allowed += f"; +{override.input_line} for an argument that the yaml file does not list"
    near = process.extractOne(parts[depth], known, score_cutoff=60)
    name = [*parts[:depth], near[0] if near else "", *parts[depth + 1 :]]
    fix = f"did you mean {'.'.join(name)}?" if near else ""
    return Problem(".".join(parts[: depth + 1]), "unknown key", allowed, fix)
