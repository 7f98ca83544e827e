"""Batching of rows: padding, grouping into forwards by length, and restoring the order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.vocabulary import StringRule

Ids = Sequence[int]

# Splitting costs another pass through the layers: it must save this many tokens, and this share of them.
_LEAST_SAVED, _LEAST_SHARE = 256, 0.08


def padded(rows: Sequence[Ids], *, left: bool = False, filling: int = 0) -> tuple[Tensor, Tensor]:
    """Pad token ids to the longest row; return them and a mask, ``True`` at tokens. Shapes (N, T)."""
    side = "left" if left else "right"
    tokens = [torch.tensor(list(ids), dtype=torch.long) for ids in rows]
    masks = [torch.ones(len(ids), dtype=torch.bool) for ids in rows]
    return pad_sequence(tokens, True, filling, side), pad_sequence(masks, True, False, side)


def by_length(
    trajectories: Trajectories,
    tokens: Callable[[int], int] = lambda length: length,
    budget: int | None = None,
    again: int = 0,
) -> Iterator[tuple[Tensor, Trajectories]]:
    """Group rows of similar length, so that little computation is spent on padding.

    Args:
        tokens: function from a row's length to the number of tokens that a forward reads for it.
        budget: maximum tokens per piece, unless a single row has more; ``None`` for no limit.
        again: tokens that every further piece reads again, such as contexts: a split must save more.

    Yields:
        The indices of the rows among all rows, and the rows.
    """
    lengths = trajectories.length_B.tolist()
    for places in length_buckets(lengths, max(again, _LEAST_SAVED)):
        size = len(places)
        if budget is not None:
            size = max(1, budget // max(1, tokens(max(lengths[place] for place in places))))
        for start in range(0, len(places), size):
            part = places[start : start + size]
            index_N = torch.tensor(part, dtype=torch.long, device=trajectories.length_B.device)
            yield index_N, trajectories.rows(index_N)


def length_buckets(lengths: Sequence[int], least_saved: float) -> list[list[int]]:
    """Group the indices of rows by length such that each group is worth a forward; short rows first.

    A group is split where this saves the most padding, if it saves at least ``least_saved`` tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    def cut(group: list[int]) -> list[list[int]]:
        longest = lengths[group[-1]]
        # Saved by splitting off the first n rows: their padding up to the longest row.
        saved = [n * (longest - lengths[place]) for n, place in enumerate(group, start=1)]
        most = max(saved)
        if most < max(least_saved, _LEAST_SHARE * len(group) * longest):
            return [sorted(group)]
        n = saved.index(most) + 1
        return cut(group[:n]) + cut(group[n:])

    return cut(order) if order else [[]]


def wider(values: Tensor, width: int, filling: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=filling)


def scored_in_pieces(
    pieces: Iterable[tuple[Tensor, Trajectories]],
    score: Callable[[Trajectories], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Score each piece of :func:`by_length`; return the values in the original order of rows."""
    places, found = [], []
    for index_N, rows in pieces:
        places.append(index_N)
        found.append(score(rows))
    if len(found) == 1:
        return found[0]
    order = torch.cat(places).argsort()
    return tuple(torch.cat(column)[order] for column in zip(*found, strict=True))


def row_slices(n_rows: int, tokens_per_row: int, budget: int) -> Iterator[slice]:
    """Split rows into slices of at most ``budget`` tokens, with at least one row each."""
    size = max(1, budget // max(1, tokens_per_row))
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


@dataclass(frozen=True)
class GivenStrings:
    """Strings z to score, each between a context and a suffix.

    Attributes:
        contexts, suffixes: token ids per condition; each context runs once.
        trajectories: the strings; ``condition_B`` indexes the conditions.
        rule: rule for the strings; it also applies to a terminator at the start of a suffix.
    """

    contexts: Sequence[Ids]
    suffixes: Sequence[Ids]
    trajectories: Trajectories
    rule: StringRule

    @property
    def terminable_BS(self) -> Tensor:
        """States at which a string may end."""
        return self.rule.terminable_BS(self.trajectories)

    def of(self, trajectories: Trajectories) -> GivenStrings:
        """Return a copy with other strings of the same conditions."""
        return replace(self, trajectories=trajectories)

    def used(self) -> GivenStrings:
        """Return a copy with only the conditions that some row uses; ``condition_B`` is renumbered."""
        used, condition_B = self.trajectories.condition_B.unique(return_inverse=True)
        contexts, suffixes = (
            [values[index] for index in used.tolist()] for values in (self.contexts, self.suffixes)
        )
        rows = replace(self.trajectories, condition_B=condition_B)
        return GivenStrings(contexts, suffixes, rows, self.rule)

    def padded_suffixes(self) -> tuple[Tensor, Tensor]:
        """Return each row's padded suffix and a mask, ``True`` at tokens. Shapes (B, M)."""
        suffix_CM, mask_CM = padded(self.suffixes)
        condition_B = self.trajectories.condition_B
        rows = condition_B.cpu()
        return suffix_CM[rows].to(condition_B.device), mask_CM[rows].to(condition_B.device)
