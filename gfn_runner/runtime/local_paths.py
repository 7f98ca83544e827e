"""Local paths in settings, made absolute when a config is validated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

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
