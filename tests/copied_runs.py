"""What a killed process leaves: copies of a run's folder at moments of its training."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

Moment = tuple[str, int]
MOMENTS = (
    "before the step is logged",
    "after the step",
    "in the evaluation",
    "after the evaluation",
)


class Copier(L.Callback):
    """Copies a run's folder at moments, before or after all other callbacks."""

    def __init__(self, folder: Path, copies: Mapping[Moment, Path], *, first: bool) -> None:
        self.folder, self.copies, self.first = folder, copies, first

    def copy(self, trainer: L.Trainer, moment: str) -> None:
        target = self.copies.get((moment, trainer.global_step))
        if target is not None and not target.exists():
            shutil.copytree(self.folder, target)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.copy(trainer, MOMENTS[0] if self.first else MOMENTS[1])

    def on_validation_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.first:
            self.copy(trainer, MOMENTS[2])

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.first:
            self.copy(trainer, MOMENTS[3])


@contextmanager
def copied(folder: Path, copies: Mapping[Moment, Path]) -> Iterator[None]:
    """Within it, a run in ``folder`` is copied at these moments of these optimizer steps."""
    begin = L.Trainer.__init__

    def begun(trainer: L.Trainer, *args: Any, callbacks: list[L.Callback], **options: Any) -> None:
        first, last = (Copier(folder, copies, first=first) for first in (True, False))
        begin(trainer, *args, callbacks=[first, *callbacks, last], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L.Trainer, "__init__", begun)
        yield


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found.isnan(), expected.isnan()), place
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}/{number}")
    else:
        assert found == expected, place
