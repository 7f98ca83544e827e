"""Training and test entries of a task: the one rule for files, and for what is drawn; knows no task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from gfn_runner.errors import Problem
from gfn_runner.randomness import rng_for
from gfn_runner.tasks.base import TaskData
from gfn_runner.textdata import Row, held_out, path_problems
from gfn_runner.types import Condition

Entry = TypeVar("Entry")
Key = TypeVar("Key", bound=Hashable)


def file_problems(name: str, train: str | None, test: str | None) -> Iterator[Problem]:
    """What is wrong with the files of ``task.data.<name>`` and ``task.data.test``, seen unopened."""
    for key, path in ((name, train), ("test", test)):
        if path is not None:
            yield from path_problems(f"task.data.{key}", path)


def train_and_test(
    read: Callable[[str], list[Row]],
    key: Callable[[Row], Hashable],
    train: str,
    test: str | None,
    *,
    n_train: int,
    n_test: int,
    what: str,
) -> tuple[list[Row], list[Row], tuple[str, ...]]:
    """Rows to train on and rows to evaluate on, none in both, and what a person should know.

    Args:
        read: of a path; raises ``UserError`` at malformed input.
        key: by which a row is known again in the other file.
        train: path. Without a test file ``n_test`` of its rows, at most half, are kept out at random,
            the same for every seed.
        test: path or ``None``. A training row that is in it too is dropped.
        n_train, n_test: how many of each at most, the first ones.
        what: plural name of the rows, for the note.
    """
    rows, notes = first_of_each(read(train), key, what)
    if test is None:
        share = min(0.5, n_test / len(rows))
        rows, evaluated = held_out(rows, share, rng_for(what, "held out"))
    else:
        evaluated, test_notes = first_of_each(read(test), key, what)
        taken = set(map(key, evaluated))
        kept = [row for row in rows if key(row) not in taken]
        notes += test_notes
        if len(kept) < len(rows):
            notes += (f"{len(rows) - len(kept)} training {what} dropped: in the test file",)
        rows = kept
    return rows[:n_train], evaluated[:n_test], notes


def first_of_each(
    rows: list[Row], key: Callable[[Row], Hashable], what: str
) -> tuple[list[Row], tuple[str, ...]]:
    """The rows without repetitions, where a loader lets them pass, and a note on how many there were."""
    kept: dict[Hashable, Row] = {}
    for row in rows:
        kept.setdefault(key(row), row)
    n_repeated = len(rows) - len(kept)
    if not n_repeated:
        return rows, ()
    return list(kept.values()), (f"{n_repeated} repeated {what} of {rows[0].source} dropped",)


def tested_on(
    data: TaskData,
    test: str | None,
    read: Callable[[str], list[Row]],
    key: Callable[[Row], Hashable],
    condition: Callable[[Row], Condition],
    *,
    n_test: int,
    what: str,
) -> TaskData:
    """Generated data, evaluated on a file's rows instead where there is one.

    Args:
        data: what is generated. A training condition that is in the file too is dropped.
        test: path or ``None``.
        read, key, n_test, what: as for :func:`train_and_test`.
        condition: of a row.
    """
    if test is None:
        return data
    rows, notes = first_of_each(read(test), key, what)
    evaluation = [condition(row) for row in rows[:n_test]]
    taken = {c.key for c in evaluation}
    kept = [c for c in data.train if c.key not in taken]
    return TaskData(kept, evaluation, (*data.notes, *notes))


def shortfall(key: str, n_found: int, n_wanted: int) -> tuple[str, ...]:
    """A note where a grammar has fewer different entries than ``key`` asks for."""
    if n_found >= n_wanted:
        return ()
    return (f"{key}: given {n_wanted}, but only {n_found} different ones were found",)


def draw_distinct(
    draw: Callable[[], Entry], key: Callable[[Entry], Key], n: int, taken: set[Key]
) -> dict[Key, Entry]:
    """``n`` different entries outside ``taken``, by key; fewer where a grammar has no more.

    Args:
        draw: one entry.
        key: by which entries are the same.
        n: how many; up to 50 times as many are drawn.
        taken: keys that may not be found.
    """
    found: dict[Key, Entry] = {}
    for _ in range(50 * n):
        entry = draw()
        if key(entry) not in taken:
            found.setdefault(key(entry), entry)
        if len(found) == n:
            break
    return found
