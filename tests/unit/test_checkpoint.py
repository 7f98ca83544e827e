"""Checkpoints on the disk: whole or not at all, checked before use, and what happens on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gfn_runner.callbacks.checkpoint import (
    AdapterCheckpoint,
    DurableCheckpointIO,
    checkpoint_damage,
    newest_checkpoint,
)
from gfn_runner.settings import CheckpointSettings


def write(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:07d}.ckpt"
    DurableCheckpointIO().save_checkpoint({"weights": torch.randn(5000), "step": step}, path)
    return path


class Trainer:
    """As much of Lightning's as a checkpoint needs."""

    def __init__(self) -> None:
        self.strategy = SimpleNamespace(checkpoint_io=DurableCheckpointIO())
        self.loggers: list = []
        self.global_step = 0

    def save_checkpoint(self, path: Path) -> None:
        self.strategy.checkpoint_io.save_checkpoint({"step": self.global_step}, path)

    def save_at(self, callback: AdapterCheckpoint, step: int) -> bool:
        self.global_step = step
        return callback.save(self)  # type: ignore[arg-type]


def test_the_newest_good_one_is_found(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    write(tmp_path, 10)
    newest = write(tmp_path, 100)
    assert newest_checkpoint(tmp_path) == newest
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize("damage", ["cut", "empty", "byte", "other"])
def test_a_damaged_one_is_passed_over_and_kept(damage, tmp_path, caplog):
    good, bad = write(tmp_path, 10), write(tmp_path, 20)
    content = bytearray(bad.read_bytes())
    if damage == "byte":
        content[len(content) // 2] ^= 1  # in the weights: torch.load would take it
        bad.write_bytes(content)
        assert torch.load(bad, weights_only=True)["step"] == 20
    else:
        bad.write_bytes({"cut": content[:-100], "empty": b"", "other": b"text" * 99}[damage])
    damaged = bad.read_bytes()
    assert newest_checkpoint(tmp_path) == good
    assert bad.with_suffix(".damaged").read_bytes() == damaged and not bad.exists()
    assert "step-0000020.damaged is damaged" in caplog.text
    assert checkpoint_damage(good) is None


def test_as_many_are_kept_as_was_asked_for(tmp_path):
    trainer, callback = Trainer(), AdapterCheckpoint(CheckpointSettings(keep=2), tmp_path)
    for step in (50, 100, 150):
        assert trainer.save_at(callback, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000100.ckpt", "step-0000150.ckpt"]


def test_a_full_disk_costs_one_checkpoint_and_is_told_once(tmp_path, monkeypatch, caplog):
    trainer, callback = Trainer(), AdapterCheckpoint(CheckpointSettings(every=50), tmp_path)
    assert trainer.save_at(callback, 50)

    def full(checkpoint, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("torch.save", full)
        assert not trainer.save_at(callback, 100)
        assert not trainer.save_at(callback, 150)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000050.ckpt"]
    assert caplog.text.count("No space left on device") == 1
    assert "training goes on, the next one is tried at step 150" in caplog.text
    # With room again it goes on as if nothing had been.
    assert trainer.save_at(callback, 200)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-0000200.ckpt"


def test_torchs_own_error_of_a_full_disk_counts_too(tmp_path, monkeypatch):
    io = DurableCheckpointIO()

    def fails(checkpoint, file):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", fails)
    io.save_checkpoint({}, tmp_path / "step-0000001.ckpt")
    assert io.problem is not None and "inline_container" in io.problem
    assert list(tmp_path.iterdir()) == []
