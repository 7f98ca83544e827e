"""Training and test entries of a task: the one rule for files, and for what is drawn; knows no task."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from gfn_runner.errors import Problem
from gfn_runner.randomness import rng_for
from gfn_runner.textdata import Row, held_out, path_problems

Entry = TypeVar("Entry")
Key = TypeVar("Key", bound=Hashable)


def file_problems(name: str, train: str | None, test: str | None) -> Iterator[Problem]:
    """What is wrong with the files of ``task.data.<name>`` and ``task.data.test``, seen unopened."""
    for key, path in ((name, train), ("test", test)):
        if path is not None:
            yield from path_problems(f"task.data.{key}", path)
    if test is not None and train is None:
        yield Problem("task.data.test", f"given without task.data.{name}", "both, or neither")


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
    rows = read(train)
    notes: tuple[str, ...] = ()
    if test is None:
        share = min(0.5, n_test / len(rows))
        rows, evaluated = held_out(rows, share, rng_for(what, "held out"))
    else:
        evaluated = read(test)
        taken = set(map(key, evaluated))
        kept = [row for row in rows if key(row) not in taken]
        if len(kept) < len(rows):
            notes = (f"{len(rows) - len(kept)} training {what} dropped: in the test file",)
        rows = kept
    return rows[:n_train], evaluated[:n_test], notes


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
