"""The replay buffer by itself: near-duplicates, draws, its state; tests/properties has it against a naive one."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from scipy.stats import chisquare

from gfn_runner.callbacks.replay_buffer import ReplayBufferCallback
from gfn_runner.data.replay_buffer import Entry, ReplayBuffer


def entry(tokens, score: float) -> Entry:
    n = len(tokens)
    return Entry(tuple(tokens), (True,) * n, (*[-1.0] * n, score))


def buffer(*entries: Entry, **options) -> ReplayBuffer:
    """With these entries of condition ``a``."""
    made = ReplayBuffer(**{"tolerance": 0.0} | options)
    for own in entries:
        made.add("a", own)
    return made


@pytest.mark.parametrize(
    ("tolerance", "lengths", "distance", "near"),
    [
        (0.25, (4, 4), 1, True),  # 1 < 2
        (0.25, (4, 4), 2, False),  # 2 < 2
        (0.25, (8, 8), 3, True),
        (0.25, (8, 8), 4, False),
        (0.25, (3, 4), 1, True),  # 1 < 1.75
        (0.25, (1, 2), 1, False),  # 1 < 0.75
        (0.5, (2, 4), 2, True),  # 2 < 3
        (0.5, (2, 4), 4, False),
        (0.99, (5, 5), 5, True),
    ],
)
def test_near_means_strictly_below_the_tolerance(tolerance, lengths, distance, near):
    short, long = lengths
    one = list(range(short))
    other = [*range(short), *range(100, 100 + long - short)]
    for place in range(distance - (long - short)):
        other[place] = 200 + place
    for first, second in ((one, other), (other, one)):
        kept = buffer(entry(first, -1), tolerance=tolerance)
        assert kept.add("a", entry(second, -2)) is not near


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_number_do_not_enter(score):
    kept = ReplayBuffer()
    assert not kept.add("a", entry([1], score))
    assert len(kept) == 0 and kept.keys() == []
    assert kept.add("a", Entry((1, 2), (True, True), (-math.inf, -1.0, -2.0)))


def test_an_entry_has_flags_and_rewards_for_its_tokens():
    for flags, rewards in (((True,), (-1.0,) * 3), ((True,) * 2, (-1.0,) * 2)):
        with pytest.raises(ValueError, match="n \\+ 1 log-rewards"):
            Entry((1, 2), flags, rewards)


def test_a_dropped_condition_is_gone():
    kept = buffer(entry([1], -1))
    kept.add("b", entry([1], -1))
    kept.drop("a")
    kept.drop("never there")
    assert kept.keys() == ["b"] and len(kept) == 1
    with pytest.raises(KeyError, match="a"):
        kept.sample("a", 1, random.Random(0))


@pytest.mark.parametrize("priority", [0.0, 0.7, 2.0])
def test_draws_follow_the_rank_law(priority):
    """The second string that of the strings that are left."""
    # Scores far apart: the law is of ranks, and not of rewards.
    kept = buffer(*(entry([r], -(10.0**r)) for r in (3, 0, 1, 2)), priority=priority)
    rng = random.Random(0)
    drawn = Counter(tuple(e.tokens[0] for e in kept.sample("a", 2, rng)) for _ in range(20_000))
    weights = [(rank + 1) ** -priority for rank in range(4)]
    law = {
        (a, b): weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a])
        for a, b in permutations(range(4), 2)
    }
    assert (
        chisquare([drawn[pair] for pair in law], [20_000 * p for p in law.values()]).pvalue > 1e-3
    )


def test_draws_come_from_the_generator_and_hold_no_string_twice():
    assert buffer(entry([1], -1)).sample("a", 3, random.Random(0)) == [entry([1], -1)]
    kept = buffer(*(entry([token], -token) for token in range(1, 30)))
    draws = [kept.sample("a", 20, random.Random(seed)) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len({e.tokens for e in draw}) == 20 for draw in draws)
    assert sorted(e.tokens[0] for e in kept.sample("a", 99, random.Random(0))) == [*range(1, 30)]


@pytest.mark.parametrize("n", [0, 2])
def test_the_state_has_the_same_types_whatever_is_in_it(n):
    kept = buffer(*(entry([token], -1) for token in range(n)))
    types = {name: value.dtype for name, value in kept.state_dict().items() if name != "keys"}
    whole = dict.fromkeys(("count_C", "length_B", "step_B", "tokens"), torch.int64)
    assert types == {**whole, "is_action": torch.bool, "log_reward": torch.float64}


@pytest.mark.parametrize("name", ["keys", "count_C", "length_B", "step_B"])
def test_a_state_that_lacks_something_is_refused(name):
    kept = buffer(entry([1], -1))
    kept.add("b", entry([2], -1))
    state = kept.state_dict()
    with pytest.raises(ValueError, match="zip"):
        buffer().load_state_dict(state | {name: state[name][:-1]})


def test_a_string_keeps_the_step_at_which_it_was_stored(tmp_path):
    kept = buffer(replace(entry([1], -1), step=3))
    kept.add("b", replace(entry([2], -1), step=8))
    # Drawn again it is the string that was there; a better spelling of it is a new one.
    assert not kept.add("a", replace(entry([1], -1), step=9))
    torch.save(kept.state_dict(), tmp_path / "state.ckpt")
    again, merged = ReplayBuffer(), buffer(replace(entry([1], -2), step=1), tolerance=0.25)
    again.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    merged.merge(kept)
    assert kept.steps() == again.steps() == merged.steps() == [3, 8]


def test_a_buffer_for_every_step_needs_something_that_enters():
    none = {"probability": 1, "seed_demonstrations": False}
    (problem,) = ReplayBufferCallback(**none).problems()
    assert problem.where == "callbacks.replay_buffer.probability"
    assert problem.allowed.startswith("below 1")
    for name in ("seed_demonstrations", "posterior_draws", "beside_fresh"):
        assert name in problem.what
        assert not [*ReplayBufferCallback(**none | {name: True}).problems()]
    assert not [*ReplayBufferCallback(seed_demonstrations=False).problems()]
