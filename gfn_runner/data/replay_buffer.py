"""Replay buffer with the best distinct strings of every condition, stored as plain data on the CPU.

Log-rewards are stored untempered, one per prefix. Of near-duplicates only the better one is kept, as in
Hu et al. 2024 (arXiv:2310.04363, appendix): two strings are near-duplicates if their token edit distance
is less than ``tolerance`` times the sum of their lengths.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class Entry:
    """One string of the replay buffer.

    Attributes:
        tokens: token ids, without the terminator.
        is_action: whether the policy chose each token (a tool's tokens are stored as observations).
        log_reward: untempered log-rewards of all prefixes in nats; one more than there are tokens.
        step: number of optimizer steps done when the string was stored; 0 for demonstrations.
    """

    tokens: tuple[int, ...]
    is_action: tuple[bool, ...]
    log_reward: tuple[float, ...]
    step: int = 0

    def __post_init__(self) -> None:
        n_tokens = len(self.tokens)
        if len(self.is_action) != n_tokens or len(self.log_reward) != n_tokens + 1:
            raise ValueError("an entry of n tokens has n action flags and n + 1 log-rewards")

    @property
    def score(self) -> float:
        """Log-reward of the complete string."""
        return self.log_reward[-1]


class ReplayBuffer:
    """Strings grouped by condition key, best first.

    Attributes:
        capacity: maximum number of strings per condition.
        tolerance: near-duplicate threshold; 0 drops exact duplicates only.
        priority: exponent a of the sampling distribution p ∝ rank^−a, with rank 1 the best; 0 is uniform.
            (Rank-based prioritization: Schaul et al. 2016, arXiv:1511.05952.)
    """

    def __init__(self, capacity: int = 50, tolerance: float = 0.25, priority: float = 0.0):
        self.capacity, self.tolerance, self.priority = capacity, tolerance, priority
        self._entries: dict[str, list[Entry]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def keys(self, at_least: int = 1) -> list[str]:
        """Return the conditions with at least ``at_least`` strings, in the order of their first string."""
        return [key for key, entries in self._entries.items() if len(entries) >= at_least]

    def entries(self, key: str) -> list[Entry]:
        """Return the strings of a condition, best first."""
        return list(self._entries.get(key, ()))

    def all_entries(self) -> list[Entry]:
        """Return the strings of all conditions."""
        return [entry for entries in self._entries.values() for entry in entries]

    def steps(self) -> list[int]:
        """Return, for every string, the number of optimizer steps done when it was stored."""
        return [entry.step for entry in self.all_entries()]

    def add(self, key: str, entry: Entry) -> bool:
        """Add a string and return whether it was kept.

        The string replaces worse near-duplicates, but is dropped if one of them is at least as good. If the
        condition is full, its worst string is evicted. Strings with a non-finite log-reward are dropped.
        """
        if not math.isfinite(entry.score):
            return False
        entries = self._entries.setdefault(key, [])
        if len(entries) >= self.capacity and entry.score <= entries[-1].score:
            return False
        near = [place for place, old in enumerate(entries) if self._is_near(old, entry)]
        if near and entries[near[0]].score >= entry.score:
            return False
        for place in reversed(near):
            del entries[place]
        place = bisect.bisect_right([-old.score for old in entries], -entry.score)
        entries.insert(place, entry)
        del entries[self.capacity :]
        return True

    def _is_near(self, old: Entry, new: Entry) -> bool:
        if old.tokens == new.tokens:
            return True
        limit = self.tolerance * (len(old.tokens) + len(new.tokens))
        cutoff = int(limit) + 1
        return Levenshtein.distance(old.tokens, new.tokens, score_cutoff=cutoff) < limit

    def sample(self, key: str, n: int, rng: random.Random) -> list[Entry]:
        """Draw ``n`` distinct strings of a condition, or all of them if there are fewer.

        (Exponential keys give weighted sampling without replacement: Efraimidis & Spirakis 2006.)

        Raises:
            KeyError: if the condition has no strings.
        """
        entries = self._entries.get(key)
        if not entries:
            raise KeyError(key)
        keys = [rng.expovariate(1.0) * (rank + 1) ** self.priority for rank in range(len(entries))]
        order = sorted(range(len(entries)), key=keys.__getitem__)
        return [entries[place] for place in order[:n]]

    def drop(self, key: str) -> None:
        """Remove a condition and its strings."""
        self._entries.pop(key, None)

    def state_dict(self) -> dict[str, Any]:
        """Return the keys and flat tensors over all strings, since saving many small objects is slow."""
        entries = self.all_entries()

        def flat(values: Iterable[Iterable[Any]], dtype: type) -> torch.Tensor:
            # Faster than building a tensor from a list.
            return torch.from_numpy(np.fromiter(itertools.chain.from_iterable(values), dtype))

        return {
            "keys": list(self._entries),
            "count_C": torch.tensor([*map(len, self._entries.values())], dtype=torch.int64),
            "length_B": torch.tensor([len(entry.tokens) for entry in entries], dtype=torch.int64),
            "step_B": torch.tensor(self.steps(), dtype=torch.int64),
            "tokens": flat((entry.tokens for entry in entries), np.int64),
            "is_action": flat((entry.is_action for entry in entries), np.bool_),
            "log_reward": flat((entry.log_reward for entry in entries), np.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""
        tokens, actions, rewards = (
            state[name].tolist() for name in ("tokens", "is_action", "log_reward")
        )
        entries, start = [], 0
        for place, (length, step) in enumerate(
            zip(state["length_B"].tolist(), state["step_B"].tolist(), strict=True)
        ):
            end = start + length
            # Each string has one more log-reward than tokens.
            own = tuple(rewards[start + place : end + place + 1])
            entries.append(Entry(tuple(tokens[start:end]), tuple(actions[start:end]), own, step))
            start = end
        rest = iter(entries)
        self._entries = {
            key: list(itertools.islice(rest, count))
            for key, count in zip(state["keys"], state["count_C"].tolist(), strict=True)
        }

    def merge(self, other: ReplayBuffer) -> None:
        """Add the strings of another buffer; the best of both are kept."""
        for key, entries in other._entries.items():
            if key in self._entries:
                for entry in entries:
                    self.add(key, entry)
            else:
                self._entries[key] = list(entries)
