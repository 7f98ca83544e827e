"""Decoders against enumeration, and against what they come to in their limits."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import GenerationConfig

from gfn_runner.evaluation.draw import policy_log_probs
from gfn_runner.lm.decoding import beam_search, diverse_beam_search, truncated_sample
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

from ..tiny_models import all_strings, as_trajectories, tiny_lm

CHARACTERS = "abc.d"
STOP, FORBIDDEN = CHARACTERS.index("."), CHARACTERS.index("d")
PROMPTS = [(0, 1, 2), (2,)]  # of different lengths: one is padded


def rule(min_len: int = 0, max_len: int = 2) -> StringRule:
    allowed_V = allowed_mask(len(CHARACTERS), [FORBIDDEN], STOP)
    return StringRule(STOP, min_len, max_len, allowed_V)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama", CHARACTERS, adapter="random")


def strings_of(trajectories, place: int) -> list[tuple[int, ...]]:
    rows = range(len(trajectories))
    return [tuple(trajectories.ids(r)) for r in rows if trajectories.condition_B[r] == place]


def by_log_q(lm, prompt, own_rule) -> dict[tuple[int, ...], float]:
    """log q of every string, likeliest first."""
    strings = all_strings(len(CHARACTERS), own_rule)
    with torch.no_grad():
        log_q = policy_log_probs(lm, [prompt], as_trajectories(strings), own_rule).tolist()
    return dict(sorted(zip(strings, log_q, strict=True), key=lambda pair: -pair[1]))


@pytest.mark.parametrize("lengths", [(0, 2), (1, 3)])
def test_as_many_beams_as_strings_find_the_likeliest(lm, lengths):
    own = rule(*lengths)
    n = len(all_strings(len(CHARACTERS), own))
    found = beam_search(lm, PROMPTS, n, own)
    for place, prompt in enumerate(PROMPTS):
        assert strings_of(found, place) == list(by_log_q(lm, prompt, own))


def test_one_beam_is_greedy_and_the_adapter_counts(lm):
    own = rule(0, 4)
    greedy = sample(lm, PROMPTS, 1, own, torch.Generator(), temperature=0.0)
    assert strings_of(beam_search(lm, PROMPTS, 1, own), 0) == strings_of(greedy, 0)
    assert strings_of(diverse_beam_search(lm, PROMPTS, 1, own), 1) == strings_of(greedy, 1)
    drawn = truncated_sample(lm, PROMPTS, 3, own, torch.Generator(), top_k=1)
    assert strings_of(drawn, 0) == strings_of(greedy, 0) * 3
    with lm.base():
        based = beam_search(lm, PROMPTS, 5, own)
    assert based.token_BT.tolist() != beam_search(lm, PROMPTS, 5, own).token_BT.tolist()


def test_diverse_beams_are_those_of_a_search_written_out(lm):
    """Group after group, token after token, with whole forwards and a counter."""
    own, n, penalty = rule(1, 3), 3, 0.7
    for prompt in PROMPTS:
        open_, done = {g: [] for g in range(n)}, {}
        for length in range(own.max_len + 1):
            counts: Counter[int] = Counter()
            for group in sorted(open_):
                logits = lm.whole_logits([[*prompt, *open_[group]]])[0, -1]
                stops = torch.tensor([length >= own.min_len])
                log_q = own.log_probs(logits[None], stops)[0]
                if length >= own.max_len:
                    token = STOP
                else:
                    score = [log_q[t].item() - penalty * counts[t] for t in range(len(CHARACTERS))]
                    token = max(range(len(CHARACTERS)), key=score.__getitem__)
                counts[token] += 1
                open_[group].append(token)
            for group in [g for g, ids in open_.items() if ids[-1] == STOP]:
                done[group] = tuple(open_.pop(group)[:-1])
        found = diverse_beam_search(lm, [prompt], n, own, penalty=penalty)
        assert strings_of(found, 0) == [done[g] for g in range(n)]


def test_truncated_draws_have_the_truncated_frequencies(lm):
    """Strings of one token: nucleus keeps the smallest set that holds top_p."""
    own, n = rule(1, 1), 3000
    (first, log_q), (second, log_q_second), *_ = by_log_q(lm, PROMPTS[0], own).items()
    share, share_second = math.exp(log_q), math.exp(log_q_second)
    for options in ({"top_k": 2}, {"top_p": share + share_second / 2}):
        generator = torch.Generator().manual_seed(1)
        drawn = truncated_sample(lm, PROMPTS[:1], n, own, generator, **options)
        counts = Counter(strings_of(drawn, 0))
        assert set(counts) == {first, second}
        expected = share / (share + share_second)
        assert counts[first] / n == pytest.approx(expected, abs=4 * (0.25 / n) ** 0.5)


def test_a_draw_is_that_of_its_generator_and_leaves_the_global_one_alone(lm):
    own = rule(0, 4)
    before = torch.random.get_rng_state()
    one, again, other = (
        truncated_sample(lm, PROMPTS, 20, own, torch.Generator().manual_seed(seed), top_p=0.9)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.token_BT, again.token_BT)
    assert one.token_BT.tolist() != other.token_BT.tolist()


def test_decoders_keep_to_the_rule(lm):
    own = rule(2, 3)
    generator = torch.Generator().manual_seed(0)
    for found in (
        beam_search(lm, PROMPTS, 4, own),
        diverse_beam_search(lm, PROMPTS, 4, own),
        truncated_sample(lm, PROMPTS, 50, own, generator, top_k=3),
    ):
        assert ((found.length_B >= 2) & (found.length_B <= 3)).all()
        assert not (found.token_BT == FORBIDDEN).any()
        ended_B = own.terminable_BS(found).gather(1, found.length_B[:, None])
        assert ended_B.all()


# What a model may bring with its weights: each changes rows of beams or of draws where it gets through.
SAVED_DEFAULTS = {
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "min_length": 6,
    "min_new_tokens": 3,
    "suppress_tokens": [0],
    "begin_suppress_tokens": [0, 1],
    "bad_words_ids": [[0]],
    "sequence_bias": [[[0], -50.0]],
    "exponential_decay_length_penalty": (0, 9.0),
    "guidance_scale": 5.0,
    "min_p": 0.9,
    "top_h": 0.05,
    "typical_p": 0.05,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.9,
    "watermarking_config": {"bias": 30.0, "greenlist_ratio": 0.3},
    "prompt_lookup_num_tokens": 2,
    "max_time": 0.0,
    "stop_strings": ["a"],
    "return_dict_in_generate": True,
}
# And what the calls or the rule for strings set themselves.
SET_BY_CALLS = {
    "num_beams": 7,
    "num_return_sequences": 3,
    "length_penalty": -9.0,
    "early_stopping": True,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.01,
    "max_new_tokens": 1,
    "forced_eos_token_id": 0,
    "eos_token_id": 0,
}


def decoded(lm) -> list[list[list[int]]]:
    own, found = rule(0, 3), [beam_search(lm, PROMPTS, 4, rule(0, 3))]
    for options in ({"top_p": 0.9}, {"top_k": 3}):
        generator = torch.Generator().manual_seed(3)
        found.append(truncated_sample(lm, PROMPTS, 12, own, generator, **options))
    return [[rows.ids(row) for row in range(len(rows))] for rows in found]


@pytest.mark.parametrize("adapter", ["none", "random"])
def test_generation_defaults_that_come_with_a_model_change_no_row(adapter):
    lm = tiny_lm("llama", CHARACTERS, adapter=adapter)
    inner = lm.model.get_base_model() if adapter == "random" else lm.model
    expected, defaults = decoded(lm), SAVED_DEFAULTS | SET_BY_CALLS
    names = defaults if adapter == "random" else ("repetition_penalty", "top_k", "min_p")
    for name in names:
        value = defaults[name]
        inner.generation_config = saved = GenerationConfig()
        setattr(saved, name, value)
        assert decoded(lm) == expected, name
        assert inner.generation_config is saved, "it is the model's own again"
