"""Which settings of a config may name a local file or folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

from gfn_runner.runtime.local_paths import LocalPath, mark_of
from gfn_runner.runtime.targets import argument_hints

LocalPathKey = tuple[str, LocalPath, Any]


def marked_paths(
    prefix: str, target: Callable[..., Any], values: Mapping[str, Any]
) -> Iterator[LocalPathKey]:
    """Every argument of a target, or field of a settings class, that is marked as a local path."""
    is_settings = dataclasses.is_dataclass(target)
    hints = get_type_hints(target, include_extras=True) if is_settings else argument_hints(target)
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            yield from marked_paths(key, type(value), own)
        elif name in hints and (mark := mark_of(hints[name])) is not None:
            yield key, mark, value
