"""Hydra overrides: parsing the command line, selecting those of a run, and making paths absolute."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.files import read_yaml

# File in a run's folder with the overrides that reproduce the run.
OVERRIDES_FILE = "overrides.yaml"
# Files that Hydra writes for a run and for a sweep.
HYDRA_FILE, HYDRA_SWEEP_FILE = ".hydra/hydra.yaml", "multirun.yaml"
# Overrides of what a command does, where, and with which launcher; they do not change the run itself.
_PASSING = ("resume=", "mode=", "run=", "prompt=", "n=", "answers=", "dry_run=", "hydra.", "hydra/")
_BY_ITSELF = "hydra.mode=RUN"
# Hydra flags that take a value.
_VALUED = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun",
}  # fmt: skip
_CONFIG_NAME = "config"  # the default
_SHORT = {"--config-dir": "-cd", "--config-name": "-cn"}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FOLDERS = ("resume", "run", "output", "hydra.run.dir", "hydra.sweep.dir")


# -- command line ---------------------------------------------------------------------------------


def flags_and_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into Hydra flags and overrides, since argparse refuses flags between overrides."""
    flags: list[str] = []
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.append(word)
        elif word in _VALUED and rest:
            flags += [word, rest.pop(0)]
        elif word in ("--info", "-i"):
            flags.append(f"--info={rest.pop(0) if rest and rest[0] in _INFO else 'all'}")
        else:
            flags.append(word)
    return flags, words


def value_of(flags: Sequence[str], name: str) -> str | None:
    """Return the value of a Hydra flag, given by its long name."""
    names = (name, _SHORT[name])
    for flag, after in itertools.pairwise([*flags, ""]):
        given, equals, value = flag.partition("=")
        if given in names:
            return value if equals else after
    return None


def config_flags(folder: Path, given: Sequence[str] = ()) -> list[str]:
    """Return the ``--config-dir`` and ``--config-name`` of a saved run or sweep, unless given or the default."""
    for file in (folder / HYDRA_FILE, folder / HYDRA_SWEEP_FILE):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            hydra = read_yaml(file, dict)["hydra"]
            sources = {s["provider"]: s["path"] for s in hydra["runtime"]["config_sources"]}
            name = hydra["job"]["config_name"]
            own = {
                "--config-dir": sources.get("command-line"),
                "--config-name": None if name == _CONFIG_NAME else name,
            }
            return [f"{k}={v}" for k, v in own.items() if v and value_of(given, k) is None]
    return []


def verbatim(text: str) -> str:
    """Quote a text for Hydra's grammar so that it is taken literally: no interpolation, list or number."""
    # Before ${, a backslash escapes the interpolation or another backslash; elsewhere it is literal.
    return quoted(re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text))


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar; interpolations in it still apply."""
    return QuotedString(text, Quote.single).with_quotes()


def as_meant(word: str) -> str:
    """Convert a shell argument into the override that Hydra has to parse.

    Everything after ``prompt=`` is the prompt. The value of a folder key, or a value that is the path of an
    existing file or folder but has special characters of Hydra's grammar (``= ( ~ # ' [ ,``), is a path.
    """
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals:
        return word
    if name == "prompt":
        return f"{key}={verbatim(value)}"
    if value[:1] in ("'", '"') and isinstance(_parsed(f"x={value}"), str):
        return word  # quoted already
    path = os.path.expanduser(value)
    exists = "\0" not in path and os.path.exists(path)
    if exists and (name in _FOLDERS or ("/" in value and _parsed(word) != value)):
        return f"{key}={verbatim(path)}"
    if name in _FOLDERS and value not in ("", "null", "auto"):
        return f"{key}={quoted(path)}"
    return word


def shell_word(key: str, text: str) -> str:
    """Return the shell argument that sets a key to a literal text."""
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def _parsed(line: str) -> Any:
    """Return the value of an override; ``None`` if Hydra's grammar does not accept it."""
    try:
        return OverridesParser.create().parse_override(line).value()
    except HydraException:
        return None


def parsed(lines: Sequence[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises:
        UserError: lists every invalid override, with the argument to type if its value is meant literally.
    """
    parser, overrides, problems = OverridesParser.create(), [], []
    for line in lines:
        try:
            overrides.append(parser.parse_override(line))
        except HydraException as error:
            key, equals, value = line.partition("=")
            fix = f"if the value is meant literally: {shell_word(key, value)}" if equals else ""
            reason = str(error).splitlines()[0]
            problems.append(Problem(f"command line: {line}", reason, "key=value", fix))
    if problems:
        raise UserError(problems)
    return overrides


# -- overrides of a run ---------------------------------------------------------------------------


def kept_overrides(lines: Sequence[str], task: str) -> list[str]:
    """Return the contents of a run's ``overrides.yaml``: the last override of each key, in order.

    Args:
        task: the chosen task; always included.
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
    """Return overrides that repeat a single run of a sweep; ``sweep=…`` alone would start the whole sweep."""
    of_sweep = is_of_sweep(lines) and _BY_ITSELF not in lines
    return [*lines, _BY_ITSELF] if of_sweep else list(lines)


def is_of_sweep(lines: Sequence[str]) -> bool:
    """Return whether an override is ``sweep=…``, a config that turns the command into a sweep."""
    return any(line.startswith("sweep=") and line != "sweep=null" for line in lines)


# -- local paths ----------------------------------------------------------------------------------


def absolute_lines(lines: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Make local paths in overrides absolute, so that they mean the same from any working directory.

    A path set only in a YAML file gets its own override, unless it differs between runs.

    Args:
        lines: overrides of one run, or of the sweep that produces all of the configs.
        configs: validated values, with absolute paths.
    """
    texts: dict[str, dict[str, bool]] = {}  # key to values, and whether each is a path
    for config in configs:
        for key, value in _settings(config):
            texts.setdefault(key, {})[_as_text(value)] = _is_path(value)
    paths = {key: list(found) for key, found in texts.items() if any(found.values())}
    result = []
    for line in lines:
        given, equals, _ = line.partition("=")
        values = paths.get(given.lstrip("+"), [])
        result.append(f"{given}={','.join(values)}" if equals and values else line)
    named = {line.partition("=")[0].lstrip("+") for line in lines}
    own = {key: values[0] for key, values in paths.items() if len(values) == 1}
    return result + [f"++{key}={value}" for key, value in own.items() if key not in named]


def _settings(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of every setting inside a section."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        elif prefix:
            yield f"{prefix}{name}", value


def _is_path(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_path, value))
    return isinstance(value, str) and Path(value).is_absolute()


def _as_text(value: Any) -> str:
    """Format a value in Hydra's grammar."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, str):
        return verbatim(value)
    return "null" if value is None else str(value).lower()
