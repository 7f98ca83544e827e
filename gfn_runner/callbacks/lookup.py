"""Look-up of a trainer's callbacks by type, which lets callbacks use each other."""

from __future__ import annotations

from typing import TypeVar

import lightning as L

T = TypeVar("T")


def find_callback(trainer: L.Trainer, kind: type[T]) -> T | None:
    """Return the trainer's first callback of a type, or ``None`` if there is none."""
    found = (callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
    return next(found, None)
