"""Checkpoints on the disk: whole or not at all, checked before use, and what happens on a full disk."""

from __future__ import annotations

import errno
import random
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
from gfn_runner.errors import UserError
from gfn_runner.runtime.json_lines import write_lines


def write(folder: Path, step: int, n_weights: int = 5000) -> Path:
    path = folder / f"step-{step:07d}.ckpt"
    content = {"weights": torch.randn(n_weights), "step": step}
    DurableCheckpointIO().save_checkpoint(content, path)
    return path


class Trainer:
    """As much of Lightning's as a checkpoint needs."""

    def __init__(self, folder: Path) -> None:
        self.default_root_dir = folder.parent
        self.strategy = SimpleNamespace(checkpoint_io=DurableCheckpointIO())
        self.loggers: list = []
        self.global_step = 0
        self.max_steps = 1000
        self.broken: str | None = None
        self.lightning_module = SimpleNamespace(not_finite=lambda: self.broken)

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
    (tmp_path / "step-0000200.ckpt").symlink_to(tmp_path / "removed meanwhile")
    assert newest_checkpoint(tmp_path) == newest
    assert not list(tmp_path.glob("*.part"))


def test_a_damaged_one_is_passed_over_and_kept(tmp_path, caplog):
    good, bad = write(tmp_path, 10), write(tmp_path, 20)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1  # in the weights
    bad.write_bytes(content)
    assert torch.load(bad, weights_only=True)["step"] == 20, "torch would take it"
    assert newest_checkpoint(tmp_path) == good
    assert bad.with_suffix(".damaged").read_bytes() == content and not bad.exists()
    assert "step-0000020.damaged is damaged" in caplog.text
    assert checkpoint_damage(good) is None


def test_whatever_bit_is_flipped_and_wherever_it_is_cut_a_checkpoint_is_damaged(tmp_path):
    path = write(tmp_path, 1, n_weights=50)
    good, draw = path.read_bytes(), random.Random(0)
    for place in (0, *draw.sample(range(len(good)), 300), *range(len(good) - 40, len(good))):
        content = bytearray(good)
        content[place] ^= 1 << draw.randrange(8)
        for other in (content, good[:place]):
            path.write_bytes(other)
            assert checkpoint_damage(path) is not None, place


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of a run's checkpoints."""
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def trainer(folder) -> Trainer:
    return Trainer(folder)


def callback(trainer: Trainer, **settings: int) -> AdapterCheckpoint:
    saves = AdapterCheckpoint(**settings)
    saves.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return saves


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_as_many_are_kept_as_was_asked_for_and_half_written_ones_are_removed(folder, trainer):
    (folder / "step-0000050.part").write_bytes(b"half")
    (folder / "step-0000040.damaged").touch()
    saves = callback(trainer, keep=2)
    assert all(trainer.save_at(saves, step) for step in (50, 100, 150))
    kept = ["step-0000100.ckpt", "step-0000150.ckpt"]
    assert names(folder) == ["step-0000040.damaged", *kept]


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError])
def test_an_old_one_that_cannot_be_removed_ends_no_run(error, folder, monkeypatch, caplog, trainer):
    saves = callback(trainer, keep=1)
    assert trainer.save_at(saves, 50)

    def refuses(path: str) -> None:
        raise error(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", refuses)  # pathlib's is this one
        assert trainer.save_at(saves, 100)
    warned = "step-0000050.ckpt cannot be removed" in caplog.text
    assert warned == (error is PermissionError)  # else somebody else has done it


def test_what_a_process_before_has_saved_of_later_steps_goes_with_its_lines(folder, trainer):
    """Of a run that goes on from an earlier state: it would be taken for the newest, and this one for old."""
    for step in (10, 50, 60):
        write(folder, step)
    assert trainer.save_at(callback(trainer, keep=2), 20)
    assert names(folder) == ["step-0000010.ckpt", "step-0000020.ckpt"]
    assert trainer.save_at(callback(trainer, keep=5), 30)
    assert len(names(folder)) == 3


def test_a_newer_one_than_any_that_is_listed_is_found_by_its_name(folder, monkeypatch):
    """The listing of a file system of the network may be a minute old."""
    write_lines(folder.parent / "metrics.jsonl", [{"step": step} for step in range(1, 26)])
    older, newer = write(folder, 10), write(folder, 20)
    for listed in ([], [older]):
        monkeypatch.setattr(Path, "glob", lambda *_, found=listed: iter(found))
        assert newest_checkpoint(folder) == newer
    newer.unlink()
    assert newest_checkpoint(folder) == older


def test_one_that_failed_is_not_tried_again_between_accumulated_batches(trainer, monkeypatch):
    """The run would go on from there without the gradients of the batches before."""
    saves, tried = callback(trainer, every_n_steps=2), []
    monkeypatch.setattr(saves, "save", lambda trainer: tried.append(trainer.global_step))
    for step in (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4):  # three batches a step
        trainer.global_step = step
        saves.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert tried == [2, 4]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        # torch's own
        (RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos"), "[enforce"),
    ],
)
def test_a_full_disk_costs_one_checkpoint_and_is_reported_once(
    error, said, folder, monkeypatch, caplog, trainer
):
    saves = callback(trainer, every_n_steps=50)
    assert trainer.save_at(saves, 50)

    def full(checkpoint, file):
        file.write(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("torch.save", full)
        assert not trainer.save_at(saves, 100) and not trainer.save_at(saves, 150)
    assert names(folder) == ["step-0000050.ckpt"]
    assert caplog.text.count(said) == 1
    assert "training continues, the next attempt is at step 150" in caplog.text
    assert trainer.save_at(saves, 200)
    assert newest_checkpoint(folder) == folder / "step-0000200.ckpt"


def test_no_checkpoint_is_before_the_lines_that_led_to_it(folder, caplog, trainer):
    saves, log = callback(trainer), SimpleNamespace(waiting=["{}\n"], save=lambda: None)
    trainer.loggers = [log]
    assert not trainer.save_at(saves, 50) and names(folder) == []
    assert "metrics.jsonl cannot be written" in caplog.text
    log.waiting = []
    assert trainer.save_at(saves, 100)


def test_a_broken_policy_is_not_saved_and_pushes_no_good_one_out(folder, caplog, trainer):
    saves = callback(trainer, keep=1)
    assert trainer.save_at(saves, 50)
    trainer.broken = "exp_avg of lora_B"
    assert not trainer.save_at(saves, 100) and not trainer.save_at(saves, 150)
    assert names(folder) == ["step-0000050.ckpt"]
    assert caplog.text.count("exp_avg of lora_B is not finite: lower optimizer.lr") == 1


@pytest.mark.parametrize(("first", "following"), [(50, 100), (70, 100), (100, 120)])
def test_a_last_state_that_is_not_saved_is_reported_as_such(
    first, following, folder, caplog, trainer
):
    saves = callback(trainer, every_n_steps=50)
    trainer.max_steps, trainer.broken = 120, "lora_B"
    assert not trainer.save_at(saves, first)  # 70: at a signal
    assert f"the next attempt is at step {following}" in caplog.text
    trainer.save_at(saves, 120)  # the last step: the end of the training comes next
    assert len(caplog.records) == 1
    saves.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert "the state of step 120, the last one, is NOT saved: lora_B is not" in caplog.text
    assert len(caplog.records) == 2 and "tried at step 150" not in caplog.text
    caplog.clear()
    trainer.broken = None
    saves.on_train_end(trainer, None)  # type: ignore[arg-type]
    assert newest_checkpoint(folder) == folder / "step-0000120.ckpt" and not caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_cannot_be_read_is_not_damaged_and_stays(error, said, tmp_path, monkeypatch):
    older, newer = write(tmp_path, 10), write(tmp_path, 20)
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == newer:
            raise error
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.raises(UserError, match=f"{newer.name} cannot be read: {said}"):
        newest_checkpoint(tmp_path)
    assert sorted(tmp_path.iterdir()) == [older, newer]
