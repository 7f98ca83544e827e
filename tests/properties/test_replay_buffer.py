"""The replay buffer under any interleaving of adds: what always holds, and what a plain list would keep."""

from __future__ import annotations

import io
import math
import random
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from gfn_runner.data.replay_buffer import Entry, ReplayBuffer
from tests.budget import examples
from tests.copied_runs import assert_same

# Few letters and lengths, so that near-duplicates are common.
TOKENS = st.lists(st.integers(0, 2), max_size=6).map(tuple)
SCORES = st.one_of(
    st.integers(-4, 4).map(float),  # equal ones are common
    st.floats(-50, 50),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
SETTINGS = st.builds(
    dict,
    capacity=st.integers(1, 5),
    tolerance=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]),
    priority=st.sampled_from([0.0, 1.0, 3.0]),
)


@st.composite
def entries(draw) -> Entry:
    tokens = draw(TOKENS)
    rewards = [0.0] * len(tokens) + [draw(SCORES)]
    actions = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
    return Entry(tokens, tuple(actions), tuple(rewards), draw(st.integers(0, 9)))


ADDS = st.lists(st.tuples(st.sampled_from("abc"), entries()), max_size=40)


def distance(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Levenshtein's, by the definition's recurrence."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def near(a: Entry, b: Entry, tolerance: float) -> bool:
    limit = tolerance * (len(a.tokens) + len(b.tokens))
    return a.tokens == b.tokens or distance(a.tokens, b.tokens) < limit


class PlainBuffer:
    """The rule of the docstring, spelled out on a list without order."""

    def __init__(self, options: dict[str, Any]):
        self.options, self.kept = options, []

    def add(self, entry: Entry) -> bool:
        if not math.isfinite(entry.score):
            return False
        full = len(self.kept) >= self.options["capacity"]
        if full and entry.score <= min(e.score for e in self.kept):
            return False
        close = [e for e in self.kept if near(e, entry, self.options["tolerance"])]
        if any(e.score >= entry.score for e in close):
            return False
        self.kept = [e for e in self.kept if e not in close] + [entry]
        if len(self.kept) > self.options["capacity"]:
            lowest = min(e.score for e in self.kept)
            # Of equals the last one that came goes.
            self.kept.remove([e for e in self.kept if e.score == lowest][-1])
        return True


@given(SETTINGS, ADDS)
@examples(150)
def test_what_holds_after_every_add(options, adds):
    buffer, plain = ReplayBuffer(**options), {key: PlainBuffer(options) for key in "abc"}
    for key, entry in adds:
        others = {k: buffer.entries(k) for k in "abc" if k != key}
        kept = buffer.add(key, entry)
        assert kept == plain[key].add(entry)
        held = buffer.entries(key)
        assert len(held) <= options["capacity"]
        assert all(math.isfinite(e.score) for e in held)
        pairs = [(a, b) for n, a in enumerate(held) for b in held[:n]]
        assert not any(near(a, b, options["tolerance"]) for a, b in pairs)
        assert kept == any(e is entry for e in held)
        # Best first; of equally good strings the older one.
        assert held == sorted(plain[key].kept, key=lambda e: -e.score)
        assert {k: buffer.entries(k) for k in others} == others


@given(SETTINGS, ADDS)
@examples(60)
def test_the_best_string_ever_given_is_never_lost(options, adds):
    buffer = ReplayBuffer(**options)
    best: dict[str, float] = {}
    for key, entry in adds:
        buffer.add(key, entry)
        if math.isfinite(entry.score):
            best[key] = max(best.get(key, -math.inf), entry.score)
    assert {key: buffer.entries(key)[0].score for key in buffer.keys()} == best  # noqa: SIM118


@given(SETTINGS, ADDS, st.integers(0, 2**31))
@examples(60)
def test_saving_and_loading_change_nothing(options, adds, seed):
    buffer, loaded = ReplayBuffer(**options), ReplayBuffer(**options)
    for key, entry in adds:
        buffer.add(key, entry)
    loaded.add("gone", Entry((9,), (True,), (0.0, 0.0)))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for key in buffer.keys():  # noqa: SIM118
        assert loaded.entries(key) == buffer.entries(key)
        draws = [b.sample(key, 3, random.Random(seed)) for b in (buffer, loaded)]
        assert draws[0] == draws[1]
    # And both go on alike.
    for key, entry in adds[::-1]:
        assert loaded.add(key, entry) == buffer.add(key, entry)
    assert_same(loaded.state_dict(), buffer.state_dict())


@given(SETTINGS, ADDS, ADDS)
@examples(60)
def test_merged_buffers_keep_every_invariant(options, left, right):
    buffers = [ReplayBuffer(**options), ReplayBuffer(**options)]
    for buffer, adds in zip(buffers, (left, right), strict=True):
        for key, entry in adds:
            buffer.add(key, entry)
    best = {
        key: max(e.score for b in buffers for e in b.entries(key))
        for b in buffers
        for key in b.keys()  # noqa: SIM118
        if b.entries(key)
    }
    buffers[0].merge(buffers[1])
    for key, score in best.items():
        held = buffers[0].entries(key)
        assert held[0].score == score and len(held) <= options["capacity"]
        pairs = [(a, b) for n, a in enumerate(held) for b in held[:n]]
        assert not any(near(a, b, options["tolerance"]) for a, b in pairs)


@given(SETTINGS, ADDS, st.integers(0, 12), st.integers(0, 2**31))
@examples(60)
def test_a_draw_has_different_strings_of_its_condition(options, adds, n, seed):
    buffer = ReplayBuffer(**options)
    for key, entry in adds:
        buffer.add(key, entry)
    for key in buffer.keys():  # noqa: SIM118
        drawn = buffer.sample(key, n, random.Random(seed))
        assert len({e.tokens for e in drawn}) == len(drawn) == min(n, len(buffer.entries(key)))
        assert all(e in buffer.entries(key) for e in drawn)
