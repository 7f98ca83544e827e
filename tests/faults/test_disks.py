"""Disks that are really full or read-only, and files that may not grow: what Python does not see of them too."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.budget import cases, seed, with_budget
from tests.faults.faulty import Faulty
from tests.faults.folders import (
    ONE,
    TASKS,
    assert_checkpoints_are_good,
    assert_explained,
    begin,
    goes_on,
)
from tests.runs import contents
from tests.slow import mostly_slow

ENOUGH = 64 * 2**20


class Disk:
    """A file system of its own at a place, of so many bytes."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", place])
        if made.returncode:
            pytest.skip("needs the right to mount a file system")

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.place], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.unmount()


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("task", with_budget(TASKS, ONE))
def test_a_disk_of_any_size(task, disk, straight, tmp_path):
    """It is full in the middle of some file; then there is room."""
    expected = straight(task).folder
    rng, codes = random.Random(f"{task} {seed()}"), []
    for number in range(cases(1)):
        folder, size = disk.place / str(number), rng.randrange(4096, used(expected))
        disk.mount(f"size={used(disk.place) // 4096 * 4096 + size}")
        run = begin(task, folder, said=tmp_path / f"{number}.txt")
        code = run.ended()
        codes.append((size, code))
        assert code in (0, 2), f"{size} bytes: {code}\n{run.text()}"
        assert_explained(run, f"{size} bytes")
        assert_checkpoints_are_good(folder)
        disk.mount(f"size={ENOUGH}")
        goes_on(task, folder, expected, what=f"{size} bytes")
        subprocess.run(["rm", "-r", folder], check=True)
    print(f"{task}, disks of so many bytes and exit codes: {codes}, of {used(expected)}")


def test_a_disk_without_room_for_the_first_file(disk, tmp_path):
    """Those are Hydra's own: the log, then the config as composed."""
    (disk.place / "rest").write_bytes(b"x" * 4096)
    for kept in (0, 4096):
        disk.mount(f"size={4096 + kept}")
        run = begin("random_number", disk.place / "run", said=tmp_path / "said.txt")
        assert run.ended() == 2, run.text()
        assert_explained(run, "no room")
    assert run.text().count("hydra.run.dir: ") == run.text().count("No space left on device") == 2


def test_a_disk_that_is_read_only_is_refused_and_left_alone(disk, straight, tmp_path):
    expected, folder = straight("random_number"), disk.place / "run"
    begun = begin("random_number", folder, prepare=Faulty(folder, "killed", 40))
    assert begun.ended() == -signal.SIGKILL
    disk.mount("ro")
    before = contents(folder)
    for place in (folder, disk.place / "new"):
        run = begin("random_number", place, said=tmp_path / f"{place.name}.txt")
        assert run.ended() == 2, run.text()
        assert_explained(run, "read-only")
        assert "Read-only file system" in run.text() and "hydra.run.dir" in run.text()
    assert contents(folder) == before
    disk.mount("rw")
    goes_on("random_number", folder, expected.folder, what="read-only")


@dataclass(frozen=True)
class Limited:
    """No file of the process may be longer; the signal at that ends it, or it gets an error."""

    size: int
    ends: bool

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if self.ends else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("ends", mostly_slow([True, False], [True]), ids=["killed", "refused"])
@pytest.mark.parametrize("task", with_budget(TASKS, ONE))
def test_a_file_that_gets_no_further(task, ends, straight, tmp_path):
    """Killed in the middle of a write, which leaves half a file; or the write is refused."""
    expected = straight(task).folder
    largest = max(path.stat().st_size for path in expected.rglob("*") if path.is_file())
    rng, codes = random.Random(f"{task} {ends} {seed()}"), []
    for number in range(cases(1)):
        # What is printed goes to a file too.
        folder, size = tmp_path / str(number), rng.randrange(16_384, largest)
        run = begin(task, folder, prepare=Limited(size, ends))
        code = run.ended()
        codes.append((size, code))
        where = f"files of {size} bytes"
        assert code in ((-signal.SIGXFSZ,) if ends else (0, 2)), f"{where}: {code}\n{run.text()}"
        assert_explained(run, where)
        assert_checkpoints_are_good(folder)
        goes_on(task, folder, expected, what=where)
    print(f"{task}, files of so many bytes and exit codes: {codes}, of {largest}")
