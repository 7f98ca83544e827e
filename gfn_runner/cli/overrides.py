"""Override lines of a run: which of a command line belong to it, how it is made again, and from where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString

from gfn_runner.runtime.local_paths import LocalPath

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


# -- local paths ----------------------------------------------------------------------------------


def absolute_lines(lines: Sequence[str], paths: Iterable[tuple[str, LocalPath, Any]]) -> list[str]:
    """Override lines in which local paths are absolute, so that they mean the same in every directory.

    A path that a yaml file gives, and no line, gets a line of its own, unless runs differ in it.

    Args:
        lines: as given in the directory that their paths are relative to.
        paths: of the configs that they lead to, see ``local_paths``.
    """
    marks: dict[str, LocalPath] = {}
    values: dict[str, set[str]] = {}
    for key, mark, value in paths:
        marks[key] = mark
        values.setdefault(key, set()).add(_as_text(value) if _is_absolute(value) else "")
    result = []
    for line in lines:
        override = OverridesParser.create().parse_override(line)
        found = marks.get(override.key_or_group)
        if found is not None and not override.is_delete():
            values.pop(override.key_or_group, None)
            line = _absolute_line(line, override, found)
        result.append(line)
    own = {key: found.pop() for key, found in values.items() if len(found) == 1}
    return result + [f"++{key}={text}" for key, text in own.items() if text]


def _absolute_line(line: str, override: Override, mark: LocalPath) -> str:
    """The line itself where nothing in it is a relative path."""
    value: Any = override.value()
    key = line[: line.index("=") + 1]
    if isinstance(value, ChoiceSweep):
        items = [_absolute(item, mark) for item in value.list]
        if items == [_absolute(item, None) for item in value.list] or value.shuffle or value.tags:
            return line
        joined = ",".join(map(_as_text, items))
        return key + (joined if value.simple_form else f"choice({joined})")
    made = _absolute(value, mark)
    return line if made == _absolute(value, None) else key + _as_text(made)


def _absolute(value: Any, mark: LocalPath | None) -> Any:
    """A value as Hydra's parser gives it, in plain containers; without a mark no path is changed."""
    if isinstance(value, list):
        return [_absolute(item, mark) for item in value]
    text = value.text if isinstance(value, QuotedString) else value
    return mark.absolute(text) if mark is not None and isinstance(text, str) else text


def _is_absolute(value: Any) -> bool:
    texts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(text, str) and Path(text).is_absolute() for text in texts)


def _as_text(value: Any) -> str:
    """A value as Hydra's grammar has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower()
