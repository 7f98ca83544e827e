"""Which models are scored packed in half precision: those that packing is right for, and no others."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm import packing
from gfn_runner.lm.packing import packs, score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import plain_prefixes
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import (
    ALIBI,
    ARCHITECTURES,
    CHARACTERS,
    WINDOWED,
    character_tokenizer,
    random_model,
    tiny_lm,
)

CONTEXTS, SUFFIXES = ((5, 9, 4, 17, 3), (8,)), ((0,), (7, 8, 0, 2))
ROWS = Trajectories.from_rows([[3, 8, 9], [14, 2]], [[True] * 3, [True] * 2], [0, 1])
RULE = StringRule(0, 0, 5)


def lm_of(architecture: str, dtype: torch.dtype, seed: int) -> LanguageModel:
    """Weights large enough for errors of nats, or so small that these are below half a nat."""
    scale = 0.3 if seed % 2 else 0.1
    options = ALIBI.get(architecture, {}) | {"initializer_range": scale}
    model = random_model(architecture, len(CHARACTERS), seed, **options)
    return LanguageModel(model.to(dtype), character_tokenizer(), packed_rewards="auto")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("architecture", ALIBI)
@torch.no_grad()
def test_a_bias_by_distance_is_not_packed(architecture, dtype):
    for seed in range(3):
        lm = lm_of(architecture, dtype, seed)
        assert not packs(lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE))
    if dtype == torch.float32:
        arguments = (lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE))
        torch.testing.assert_close(
            score_prefixes(*arguments), plain_prefixes(*arguments), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rounding_alone_is_no_reason(architecture):
    for seed in range(2):
        assert packs(
            lm_of(architecture, torch.bfloat16, seed), GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE)
        )


def test_a_small_error_is_found_in_full_precision_and_nan_is_no_agreement(monkeypatch):
    right = packing.packed_prefixes
    for error in (2e-3, float("nan")):
        lm = tiny_lm("gpt2", packed_rewards="auto")
        monkeypatch.setattr(packing, "packed_prefixes", lambda *a, e=error: right(*a) + e)
        assert not packs(lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE))


@torch.no_grad()
def test_lengths_of_the_run_are_compared(monkeypatch, caplog):
    """A model that is wrong for long sequences only: no setting of its config says so."""
    right, read = packing.packed_prefixes, []

    def wrong_above_40(lm, given):
        read.append(max(map(len, given.contexts)))
        return right(lm, given) + (1.0 if read[-1] > 40 else 0.0)

    monkeypatch.setattr(packing, "packed_prefixes", wrong_above_40)
    lm = tiny_lm("llama", packed_rewards="auto")
    assert packs(lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE)) and max(read) <= 32
    n = len(read)
    assert packs(lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE)) and len(read) == n, (
        "compared once"
    )
    assert not packs(lm, GivenStrings([(5,) * 35], SUFFIXES[:1], ROWS, RULE)) and max(read) > 40
    assert "packed scoring is off" in caplog.text


def test_what_was_compared_beyond_a_window_says_nothing_of_packing(monkeypatch):
    right = packing.packed_prefixes
    monkeypatch.setattr(packing, "packed_prefixes", lambda *a: right(*a) + 1)
    lm = tiny_lm("mistral", config=WINDOWED["mistral"], packed_rewards="auto")
    assert (
        not packs(lm, GivenStrings([(5,) * 30], SUFFIXES[:1], ROWS, RULE))
        and lm.packed_rewards == "auto"
    )
    assert (
        not packs(lm, GivenStrings([(5,) * 5], SUFFIXES[:1], ROWS, RULE))
        and lm.packed_rewards == "never"
    )


def test_a_model_whose_cache_is_wrong_is_refused(monkeypatch):
    """As Moshi's beyond its window: no way of scoring agrees with what is sampled."""
    lm = tiny_lm("llama", packed_rewards="auto")
    prefill = lm.prefill

    def forgetful(prompts):
        prompt = prefill(prompts)
        prompt.cache.layers[0].keys = prompt.cache.layers[0].keys.flip(2)
        return prompt

    monkeypatch.setattr(lm, "prefill", forgetful)
    with pytest.raises(UserError, match="nats from those of a plain forward at 32 tokens"):
        packs(lm, GivenStrings(CONTEXTS, SUFFIXES, ROWS, RULE))


@pytest.mark.parametrize("vocabulary", ["ab.", ".a"])
def test_small_vocabularies_can_be_probed(vocabulary):
    lm = tiny_lm("llama", vocabulary, packed_rewards="auto")
    one = Trajectories.from_rows([[1]], [[True]], [0])
    assert packs(lm, GivenStrings([(0, 1)], [(0,)], one, RULE))
