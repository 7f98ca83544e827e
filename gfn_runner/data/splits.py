"""Training and test entries of a task, read from files or drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from gfn_runner.data.conditions import Condition
from gfn_runner.data.readers import Row, held_out, path_problems
from gfn_runner.data.samples import TaskData
from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.seeds import rng_for

Entry = TypeVar("Entry")
Key = TypeVar("Key", bound=Hashable)
_MOST = 1_000_000  # generated entries


def file_problems(name: str, train: str | None, test: str | None) -> Iterator[Problem]:
    """Yield problems of the paths ``task.data.<name>`` and ``task.data.test``, without opening the files."""
    for key, path in ((name, train), ("test", test)):
        if path is not None:
            yield from path_problems(f"task.data.{key}", path)


class FileSettings(Protocol):
    """Settings about files that ``task.data`` has in every task."""

    @property
    def test(self) -> str | None: ...
    @property
    def n_train(self) -> int: ...
    @property
    def n_test(self) -> int | None: ...


@dataclass(frozen=True)
class Files:
    """Files that a task's rows are read from, and how each row becomes a condition.

    Attributes:
        train: path of the training file, or ``None``.
        settings: path of the test file, and the maximum number of rows to use from each file, in order;
            ``n_test = None`` uses all test rows.
        read: reads the rows of a path; raises ``UserError`` on malformed input.
        key: identifies a row, to find it again in the other file.
        condition: builds a condition from a row and the name of its evaluation set, or ``train``.
        what: plural noun for the rows, used in notes.
        group: name of the evaluation set.
    """

    train: str | None
    settings: FileSettings
    read: Callable[[str], list[Row]]
    key: Callable[[Row], Hashable]
    condition: Callable[[Row, str], Condition]
    what: str
    group: str

    def load(self, generate: Callable[[], TaskData]) -> TaskData:
        """Return disjoint training and evaluation conditions, with notes for the log.

        Without a training file, conditions are generated; a test file then replaces the evaluation ones.
        Without a test file, ``n_test`` rows of the training file, at most half, are held out at random,
        the same ones for every seed. Rows that occur in the test file are removed from training.
        """
        if self.train is None:
            return self._tested(generate()) if self.settings.test is not None else generate()
        rows, notes = self._read(self.train)
        if self.settings.test is None:
            share = min(0.5, (self.settings.n_test or len(rows)) / len(rows))
            kept, tested = held_out(rows, share, rng_for(self.what, "held out"))
        else:
            tested, test_notes = self._read(self.settings.test)
            taken = set(map(self.key, tested))
            kept = [row for row in rows if self.key(row) not in taken]
            notes += test_notes
            if len(kept) < len(rows):
                notes += (
                    f"{len(rows) - len(kept)} training {self.what} dropped: in the test file",
                )
        train = [self.condition(row, "train") for row in kept[: self.settings.n_train]]
        evaluated = [self.condition(row, self.group) for row in tested[: self.settings.n_test]]
        return TaskData(train, evaluated, notes)

    def _read(self, path: str) -> tuple[list[Row], tuple[str, ...]]:
        """Return the rows of a file without duplicates, and a note with the number of duplicates."""
        rows = self.read(path)
        kept = first_of_each(rows, self.key)
        n_repeated = len(rows) - len(kept)
        return kept, (f"{n_repeated} repeated {self.what} of {path} dropped",) * (n_repeated > 0)

    def _tested(self, data: TaskData) -> TaskData:
        """Return generated training data with the test file for evaluation."""
        rows, notes = self._read(str(self.settings.test))
        evaluated = [self.condition(row, self.group) for row in rows]
        taken = {condition.key for condition in evaluated}
        kept = [condition for condition in data.train if condition.key not in taken]
        return TaskData(kept, evaluated[: self.settings.n_test], (*data.notes, *notes))


def first_of_each(
    entries: Iterable[Entry], key: Callable[[Entry], Hashable], taken: Collection[Hashable] = ()
) -> list[Entry]:
    """Return the first entry for each key that is not in ``taken``."""
    found: dict[Hashable, Entry] = {}
    for entry in entries:
        if key(entry) not in taken:
            found.setdefault(key(entry), entry)
    return list(found.values())


def draw_distinct(
    draw: Callable[[int], Entry],
    key: Callable[[Entry], Key],
    n: int,
    taken: Collection[Hashable] = (),
    *,
    where: str,
) -> dict[Key, Entry]:
    """Draw ``n`` entries with distinct keys outside ``taken``, and return them by key.

    Args:
        draw: draws one entry, given the number of entries so far.
        key: identifies an entry; entries with equal keys are duplicates.
        taken: keys to exclude.
        where: the config key that sets ``n``, for the error message.

    Raises:
        UserError: if ``n`` is above a million, or if many draws in a row give nothing new.
    """
    if n > _MOST:
        raise UserError.one(where, f"given {n}", f"at most {_MOST} generated entries")
    found: dict[Key, Entry] = {}
    in_vain = 0
    while len(found) < n and in_vain < 50 * len(found) + 10_000:
        entry = draw(len(found))
        if key(entry) in taken or key(entry) in found:
            in_vain += 1
        else:
            found[key(entry)], in_vain = entry, 0
    if len(found) < n:
        what = f"given {n}, but only {len(found)} different ones were found"
        raise UserError.one(where, what, f"at most {len(found)}")
    return found


def draw_sets(
    name: str,
    seed: int,
    draw: Callable[[random.Random, int], Entry],
    key: Callable[[Entry], Key],
    n_train: int,
    n_test: int,
) -> tuple[dict[Key, Entry], dict[Key, Entry]]:
    """Draw disjoint training and test entries; the test entries are the same for every seed.

    Raises:
        UserError: as :func:`draw_distinct`.
    """
    draw_test = partial(draw, rng_for(name, "test"))
    test = draw_distinct(draw_test, key, n_test, where="task.data.n_test")
    draw_train = partial(draw, rng_for(name, "train", seed))
    return draw_distinct(draw_train, key, n_train, test, where="task.data.n_train"), test
