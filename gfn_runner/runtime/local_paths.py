"""Local paths in settings, made absolute when the config is validated."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

# Key in pydantic's validation context: the folder in which relative paths are looked up first.
FOLDER = "folder"


@dataclass(frozen=True)
class LocalPath:
    """Marks a string setting that may be a local path: ``Annotated[str, LocalPath()]``.

    Validation makes it absolute if a file or folder of that name exists, or if it is written as a path
    (``./x``, ``../x``, ``~/x``). Anything else, such as a Hub id, is unchanged. A config then refers to the
    same files from any working directory.

    Attributes:
        words: values with a special meaning, even if a file of that name exists.
    """

    words: tuple[str, ...] = ()

    def absolute(self, text: str, folder: Path | None = None) -> str:
        """Return the text as an absolute path if it denotes one, else unchanged.

        Args:
            folder: where relative paths are looked up before the working directory.
        """
        if text in self.words:
            return text
        path = Path(os.path.expanduser(text))
        if folder is not None and os.path.exists(folder / path):
            return str((folder / path).absolute())
        is_path = text.startswith((".", "/", "~")) or (text != "" and os.path.exists(path))
        # Symlinks are not resolved, so that a link redirected to a newer folder later is followed.
        return str(path.absolute()) if is_path else text

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def validate(value: str, info: ValidationInfo) -> str:
            return self.absolute(value, (info.context or {}).get(FOLDER))

        return core_schema.with_info_after_validator_function(validate, handler(source))
