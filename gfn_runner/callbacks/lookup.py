"""Callbacks of a trainer, by their type: how callbacks find each other."""

from __future__ import annotations

from typing import TypeVar

import lightning as L

T = TypeVar("T")


def find_callback(trainer: L.Trainer, kind: type[T]) -> T | None:
    """The trainer's first callback of a type; ``None`` if it has none, or a config has removed it."""
    found = (callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
    return next(found, None)
