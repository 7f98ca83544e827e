"""Local paths in settings, made absolute when a config is validated."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from gfn_runner.runtime.targets import argument_hints

# Key of pydantic's validation context: the folder that relative paths are looked for in first.
FOLDER = "folder"


@dataclass(frozen=True)
class LocalPath:
    """Marks a text of the settings that may be a local path: ``Annotated[str, LocalPath()]``.

    Validation makes it absolute if a file or folder of that name exists, or if it is written as a path
    (``./x``, ``../x``, ``~/x``). Anything else, such as a hub id, stays as it is. A config that is used
    from another directory then means the same files.

    Attributes:
        words: values with a meaning of their own, whatever lies in the directory.
    """

    words: tuple[str, ...] = ()

    def absolute(self, text: str, folder: Path | None = None) -> str:
        """The absolute path that a text means, or the text.

        Args:
            folder: where a relative path is looked for before the working directory.
        """
        if text in self.words:
            return text
        path = Path(os.path.expanduser(text))
        if folder is not None and os.path.exists(folder / path):
            return str((folder / path).absolute())
        is_path = text.startswith((".", "/", "~")) or (text != "" and os.path.exists(path))
        # Not resolved: a link that is set to a newer folder later is meant to lead there.
        return str(path.absolute()) if is_path else text

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(value: str, info: ValidationInfo) -> str:
            return self.absolute(value, (info.context or {}).get(FOLDER))

        return core_schema.with_info_after_validator_function(validate, handler(source))


def mark_of(hint: Any) -> LocalPath | None:
    """The mark of a type, or of a part of it (``X | None``, ``tuple[X, ...]``)."""
    own = [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, LocalPath)]
    parts = (mark_of(part) for part in get_args(hint))
    return next(iter(own), None) or next((mark for mark in parts if mark is not None), None)


LocalPathKey = tuple[str, LocalPath, Any]


def marked_paths(
    prefix: str, target: Callable[..., Any], values: Mapping[str, Any]
) -> Iterator[LocalPathKey]:
    """Every argument of a target, or field of a settings class, that is marked as a local path.

    Yields:
        Key, mark and value; settings within settings too.
    """
    is_settings = dataclasses.is_dataclass(target)
    hints = get_type_hints(target, include_extras=True) if is_settings else argument_hints(target)
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            yield from marked_paths(key, type(value), own)
        elif name in hints and (mark := mark_of(hints[name])) is not None:
            yield key, mark, value
