"""User errors for command lines that Hydra refuses: every unknown key and choice, with the closest name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rapidfuzz import process

from gfn_runner.cli.hooks import HYDRA_ERRORS
from gfn_runner.config.compose import CONF
from gfn_runner.errors import Problem, UserError, did_you_mean
from gfn_runner.runtime.overrides import flags_and_words, parsed, quoted, shell_word, value_of

_TYPO = 75  # similarity in % of likely typos; min_len is 71 % max_len


def explained(error: Exception, argv: Sequence[str]) -> UserError:
    """Convert Hydra's error about a command line to user errors.

    Hydra reports only the first problem. Here, the config is composed from the valid choices, and all other
    overrides are compared with it.
    """
    flags, words = flags_and_words(argv)
    name = value_of(flags, "--config-name") or "config"
    folder = value_of(flags, "--config-dir")
    if folder is not None and not Path(folder).is_dir():
        return UserError.one("--config-dir", f"given {folder!r}, which is not a folder")
    names = _config_names(folder)
    if name.removesuffix(".yaml") not in names:
        return UserError.one(
            "--config-name", f"given {name!r}", ", ".join(names), did_you_mean(name, names)
        )
    problems: list[Problem] = []
    own = Path(folder or CONF).resolve()
    # The folder with the main config comes first; the other one is appended to the search path.
    main, added = (own, CONF) if (own / f"{name}.yaml").is_file() else (CONF, own)
    with (
        contextlib.suppress(*HYDRA_ERRORS),
        initialize_config_dir(version_base=None, config_dir=str(main)),
    ):
        path = [] if folder is None else [f"hydra.searchpath=[{quoted(f'file://{added}')}]"]
        problems = _unknown(parsed(words), name, path)
    several = {"-m", "--multirun"}.isdisjoint(flags)
    if not problems and several and "--multirun" in str(error):
        problems = [
            _several(override) for override in parsed(words) if override.is_sweep_override()
        ]
    if problems:
        return UserError(problems)
    cause = error.__cause__
    where = str(getattr(cause, "full_key", None) or "command line")
    reason = " ".join(str(error if cause is None else f"{error} {cause}").split())
    return UserError.one(where, reason, fix="see python -m gfn_runner --help")


def _config_names(folder: str | None) -> list[str]:
    folders = [CONF] if folder is None else [CONF, Path(folder)]
    return sorted({file.stem for place in folders for file in place.glob("*.yaml")})


def _several(override: Override) -> Problem:
    key, value = str(override.key_or_group), str(override.input_line).partition("=")[2]
    fix = f"-m sweeps over them; as a single string: {shell_word(key, value)}"
    return Problem(
        key, f"given several values, {value}, for one run", f"one, or a list [{value}]", fix
    )


def _unknown(overrides: Sequence[Override], name: str, path: list[str]) -> list[Problem]:
    loader = GlobalHydra.instance().config_loader()

    def options(group: str, kind: ObjectType) -> list[str]:
        # Given a config name, Hydra also searches the folder of --config-dir.
        return loader.get_group_options(group, kind, config_name=name, overrides=path)

    def choices(group: str) -> Iterator[str]:
        yield from options(group, ObjectType.CONFIG)
        if group.split("/")[0] == "experiment":
            # In other groups, a subfolder is a group of its own (callbacks/replay_buffer=…).
            for inner in options(group, ObjectType.GROUP):
                yield from (f"{inner}/{choice}" for choice in choices(f"{group}/{inner}"))

    problems: list[Problem] = []
    chosen, keys = list(path), []
    groups = set(options("", ObjectType.GROUP))
    for override in overrides:
        group = override.key_or_group
        if "/" in group and group not in groups and not any(options(group, ObjectType.CONFIG)):
            problems.append(_no_group(group, groups, options))
        elif "." in group or not any(options(group, kind) for kind in ObjectType if kind.value):
            keys.append(override)
        elif not override.is_delete():
            found = list(_choice_problems(override, sorted(choices(group))))
            problems += found
            if not found and not override.is_sweep_override():
                chosen.append(str(override.input_line))
    base = compose(name, overrides=chosen, return_hydra_config=True)
    for override in keys:
        problems += _key_problems(override, base, groups)
    return problems


def _no_group(group: str, groups: set[str], options: Any) -> Problem:
    parent = group.rpartition("/")[0]
    known = [f"{parent}/{name}" for name in options(parent, ObjectType.GROUP)] or sorted(groups)
    return Problem(group, "unknown group", ", ".join(known), did_you_mean(group, known))


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


def _key_problems(override: Override, base: DictConfig, groups: set[str]) -> Iterator[Problem]:
    """Report the first part of a key that the config does not have."""
    if override.is_add() or override.is_force_add():
        return
    node: Any = base
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            return  # a plain value, which validation will explain
        # Iterate over the keys: testing membership resolves values, which may create a run's folder.
        if part not in list(node):
            yield _unknown_key(override, depth, node, groups)
            return
        node = None if OmegaConf.is_missing(node, part) else node._get_node(part)


def _unknown_key(override: Override, depth: int, node: DictConfig, groups: set[str]) -> Problem:
    parts = override.key_or_group.split(".")
    known = [str(key) for key in node if not str(key).startswith("_")]
    if depth == 0:
        known = [key for key in dict.fromkeys([*known, *sorted(groups)]) if key != "hydra"]
        if parts[0] in groups:
            return Problem(
                parts[0],
                "no option of this group is selected",
                "",
                f"{parts[0]}=<option>, in addition",
            )
    prefix = "".join(f"{part}." for part in parts[:depth])
    key = f"{prefix}{parts[depth]}"
    if prefix == "hydra.launcher." and not known:
        # For a launcher without options, the names of other launchers are more helpful.
        known = ["none with hydra/launcher=basic; local, slurm, slurm_gpu have some"]
    near = process.extractOne(parts[depth], known, score_cutoff=60)
    if (near is None or near[1] < _TYPO) and parts[depth] in (more := _further_arguments(node)):
        line = str(override.input_line)
        return Problem(
            key,
            "not in the yaml file of the selected option",
            ", ".join([*known, *more]),
            f"+{line}",
        )
    rest = "".join(f".{part}" for part in parts[depth + 1 :])
    fix = f"did you mean {prefix}{near[0]}{rest}?" if near else ""
    return Problem(key, "unknown key", ", ".join(known), fix)


def _further_arguments(node: DictConfig) -> list[str]:
    """Return arguments of a node's ``_target_`` that it does not list. Slow: most targets import torch."""
    if node.get("_target_") is None:
        return []
    from gfn_runner.runtime.targets import argument_hints, target_of

    with contextlib.suppress(UserError):
        hints = argument_hints(target_of("", {"_target_": node["_target_"]}))
        return [name for name in hints if name not in node]
    return []
