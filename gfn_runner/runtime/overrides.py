"""Override lines: as they are typed, which of them belong to a run, and with absolute paths."""

from __future__ import annotations

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

# Of a run's folder: the lines that make the run again.
OVERRIDES_FILE = "overrides.yaml"
# Hydra's own, of a run and of a sweep.
HYDRA_FILE, HYDRA_SWEEP_FILE = ".hydra/hydra.yaml", "multirun.yaml"
# What a command is to do, where, and by which launcher; none of it makes the run another one.
_PASSING = ("resume=", "mode=", "run=", "prompt=", "n=", "answers=", "dry_run=", "hydra.", "hydra/")
_BY_ITSELF = "hydra.mode=RUN"
# Flags of Hydra that take a value.
_VALUED = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun",
}  # fmt: skip
_SHORT = {"--config-dir": "-cd", "--config-name": "-cn"}
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_FOLDERS = ("resume", "run", "output", "hydra.run.dir", "hydra.sweep.dir")


# -- as they are typed ----------------------------------------------------------------------------


def flags_and_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags and the overrides: argparse refuses flags that stand between overrides."""
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
    """The value of one of Hydra's flags, by its long name."""
    names = (name, _SHORT[name])
    for flag, after in itertools.pairwise([*flags, ""]):
        given, equals, value = flag.partition("=")
        if given in names:
            return value if equals else after
    return None


def verbatim(text: str) -> str:
    """A text in Hydra's grammar, so that its value is that text: no interpolation, no list, no number."""
    # Before ${ a backslash escapes the interpolation, or another backslash; elsewhere it is itself.
    return quoted(re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text))


def quoted(text: str) -> str:
    """A text in Hydra's grammar; interpolations in it count."""
    return QuotedString(text, Quote.single).with_quotes()


def as_meant(word: str) -> str:
    """An override as Hydra has to read it, of a word as the shell gives it.

    What follows ``prompt=`` is the prompt. A folder, or a value that names an existing file or folder and
    is something else in Hydra's grammar (of ``= ( ~ # ' [ ,``, say), is that path.
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
    """What to type for a text as the value of a key."""
    return shlex.quote(f"{key}={QuotedString(text, Quote.double).with_quotes()}")


def _parsed(line: str) -> Any:
    """The value of a line; ``None`` if Hydra's grammar does not have it."""
    try:
        return OverridesParser.create().parse_override(line).value()
    except HydraException:
        return None


def parsed(lines: Sequence[str]) -> list[Override]:
    """Override lines by Hydra's grammar.

    Raises:
        UserError: with every line that is none, and the word to type if its value is meant as a text.
    """
    parser, overrides, problems = OverridesParser.create(), [], []
    for line in lines:
        try:
            overrides.append(parser.parse_override(line))
        except HydraException as error:
            key, equals, value = line.partition("=")
            fix = f"if the value is meant as it stands: {shell_word(key, value)}" if equals else ""
            reason = str(error).splitlines()[0]
            problems.append(Problem(f"command line: {line}", reason, "key=value", fix))
    if problems:
        raise UserError(problems)
    return overrides


# -- of a run -------------------------------------------------------------------------------------


def kept_overrides(lines: Sequence[str], task: str) -> list[str]:
    """What a run's ``overrides.yaml`` holds: one line a key, the last one given, in their order.

    Args:
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
    of_sweep = is_of_sweep(lines) and _BY_ITSELF not in lines
    return [*lines, _BY_ITSELF] if of_sweep else list(lines)


def is_of_sweep(lines: Sequence[str]) -> bool:
    """Whether a line is ``sweep=…``: a config that makes a command a sweep."""
    return any(line.startswith("sweep=") and line != "sweep=null" for line in lines)


# -- local paths ----------------------------------------------------------------------------------


def absolute_lines(lines: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Override lines in which local paths are absolute, so that they mean the same in every directory.

    A path that a yaml file gives, and no line, gets a line of its own, unless runs differ in it.

    Args:
        lines: of one run, or of the sweep that makes all of the configs.
        configs: validated values, with absolute paths.
    """
    texts: dict[str, dict[str, bool]] = {}  # of each key its values, and whether one is a path
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
    """Key and value of all settings within sections."""
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
    """A value as Hydra's grammar has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, str):
        return verbatim(value)
    return "null" if value is None else str(value).lower()
