"""The benchmark's contestants do the same work: same log-rewards, same scores; and they run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bench import load
from bench.floor import Floor
from bench.measure import alternating, ratio, slope
from bench.ours import PHASES, OurStep
from bench.plain import PlainStep
from bench.work import TERMINATOR, Shape, make_lm

from gfn_runner.lm.scoring import score_policy
from gfn_runner.rewards.reward import log_reward

SHAPE = Shape(2, 3, 2, 4, 6, 5, 3)
SMALL = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40, "n_positions": 64}


@pytest.fixture(scope="module")
def lm():
    return make_lm("gpt2", "cpu", **SMALL)


@pytest.mark.parametrize("suffix", [1, 3])
def test_the_plain_way_has_the_same_numbers(lm, suffix):
    plain = PlainStep(lm, dataclasses.replace(SHAPE, suffix=suffix))
    condition = plain.conditions[0]
    prompt, term = lm.encode_prompt(condition.prompt), condition.terms[0]
    context, tail = lm.encode_prompt(term.context), lm.encode(term.suffix) or (TERMINATOR,)
    with torch.no_grad():
        trajectories, scores = plain._sample(prompt)
        rewards_BS = plain._log_reward(context, tail, trajectories, scores.terminable_BS)
        rule = OurStep(lm, SHAPE).module.rule
        ours = score_policy(lm, [prompt], trajectories, rule)
        expected_BS = log_reward(lm, [condition], trajectories, rule)
    ends_BS = ours.terminable_BS
    assert torch.equal(scores.terminable_BS, ends_BS) and ends_BS.any()
    # The plain way knows no rule for strings: below the shortest length it leaves the terminator's
    # mass in, and at the longest it does not force the end.
    free_BS = ends_BS & ~rule.forced_BS(trajectories)
    torch.testing.assert_close(
        scores.log_pf_stop_BS[free_BS], ours.log_pf_stop_BS[free_BS], atol=1e-4, rtol=0
    )
    gap_BS = (rewards_BS - expected_BS)[ends_BS]
    assert gap_BS.isfinite().all() and gap_BS.abs().max() < 0.2


def test_a_careful_plain_way_leaves_out_rewards_that_are_not_read(lm, monkeypatch):
    """The same log-rewards; forwards only where a string may end."""
    found, forwards = [], []
    forward = lm.model.forward
    monkeypatch.setattr(
        lm.model, "forward", lambda **o: forwards.append(o["use_cache"]) or forward(**o)
    )
    for careful in (False, True):
        torch.manual_seed(0)
        plain = PlainStep(lm, SHAPE, careful=careful)
        condition = plain.conditions[0]
        with torch.no_grad():
            trajectories, scores = plain._sample(lm.encode_prompt(condition.prompt))
            forwards.clear()
            context = lm.encode_prompt(condition.terms[0].context)
            tail = lm.encode(condition.terms[0].suffix)
            found.append(plain._log_reward(context, tail, trajectories, scores.terminable_BS))
        states = SHAPE.longest + 1
        assert len(forwards) == (states - SHAPE.shortest if careful else states)
    torch.testing.assert_close(*found)


def test_a_step_of_each_and_its_phases(lm):
    ours, floor, plain = OurStep(lm, SHAPE), Floor(lm, SHAPE), PlainStep(lm, SHAPE)
    before = [p.clone() for p in lm.trainable().values()]
    ours(0)
    assert set(ours.seconds) == set(PHASES) and min(ours.seconds.values()) >= 0
    assert any(not torch.equal(a, b) for a, b in zip(before, lm.trainable().values(), strict=True))
    assert len(ours.replay.buffer) > 0 and ours.trajectories is not None
    floor(ours.trajectories)
    plain()


def test_ratios_and_slopes():
    turns = []
    timed = {"a": lambda n: turns.append(("a", n)), "b": lambda n: turns.append("b")}
    seconds = alternating(timed, 2)
    assert turns == [("a", 0), "b", ("a", 1), "b", ("a", 2), "b"] and len(seconds["a"]) == 2
    assert ratio([4.0, 9.0, 1.0], [2.0, 3.0, 1.0]) == (2.0, 1.0, 3.0)
    assert slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    rng, steps = np.random.default_rng(0), np.arange(2000.0)
    found, half = load.slope_with_interval(steps, 500 + 0.003 * steps + rng.normal(0, 2, 2000))
    assert abs(found - 3) < 2 * half and 0 < half < 1


@pytest.mark.parametrize("case", load.CASES)
def test_what_is_loaded_is_measured_at_a_small_size(case):
    size = 300 if case.startswith(("vocabulary", "buffer")) else 20
    seconds, gib = load.one_load(case, size)
    assert seconds > 0 and gib >= 0
