"""Lengths that configs state, and RoPE whose frequencies depend on the longest sequence of a batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.limits import attention_window, context_length, same_up_to
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.packing import score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import plain_prefixes
from gfn_runner.lm.scoring import score_policy, score_strings
from gfn_runner.lm.text_checks import text_problems
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import ARCHITECTURES, CHARACTERS, character_tokenizer, random_model, tiny_lm

LONGROPE = ARCHITECTURES["phi"] | {
    "original_max_position_embeddings": 24,
    "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
}
DOT = CHARACTERS.index(".")


@pytest.fixture
def longrope() -> LanguageModel:
    return tiny_lm("phi3", config=LONGROPE, packed_rewards="auto")


def test_what_configs_state():
    phi = AutoConfig.for_model("phi3", **LONGROPE)
    assert (context_length(phi), list(same_up_to(phi)), attention_window(phi)) == (24, [24], None)
    gpt2 = AutoConfig.for_model("gpt2", n_positions=64)
    assert (context_length(gpt2), same_up_to(gpt2), attention_window(gpt2)) == (64, {}, None)
    both = AutoConfig.for_model("gemma3", text_config={"sliding_window": 32})
    assert attention_window(both) == 32
    off = AutoConfig.for_model("qwen2", use_sliding_window=False, sliding_window=32)
    assert attention_window(off) is None
    nested = {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 8}}
    config = SimpleNamespace(rope_parameters=nested)
    config.get_text_config = lambda decoder: config
    assert list(same_up_to(config)) == [8] and context_length(config) == 8
    sparse = AutoConfig.for_model("deepseek_v32", index_topk=16)
    assert list(same_up_to(sparse)) == [16] and context_length(sparse) == 16


@pytest.mark.parametrize(("context", "fits"), [("a" * 10, True), ("a" * 20, False)])
def test_a_run_that_can_cross_the_limit_is_refused(tmp_path, context, fits):
    random_model("phi3", len(CHARACTERS), **LONGROPE).save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    strings = [("the prompt of condition 'x'", context, "")]
    found = list(text_problems(LMSettings(name=str(tmp_path)), ".", strings, 10))
    assert bool(found) != fits
    if not fits:
        assert found[0].where == "task" and "longrope" in found[0].what
        assert "20 tokens" in found[0].what and "at most 24 tokens" in found[0].allowed


@torch.no_grad()
def test_below_the_limit_all_ways_agree_and_above_it_none_is_computed(longrope):
    lm, rule = longrope, StringRule(DOT, 0, 6)
    rows = Trajectories.from_rows([[3, 4, 5, 6], [7]], [[True] * 4, [True]], [0, 1])
    contexts, suffixes = [tuple(range(1, 16)), (5, 6)], [(DOT, 9), (DOT, 9, 8, 7, 6)]
    given = GivenStrings(contexts, suffixes, rows, rule)
    plain_BS = plain_prefixes(lm, given)
    torch.testing.assert_close(score_prefixes(lm, given), plain_BS, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="above 24 this model cannot be sampled and scored alike"):
        lm.whole_logits([[1] * 25])


@torch.no_grad()
def test_padding_asks_for_no_position_above_the_limit(longrope):
    """A long context with a short string beside a short context with a long one: each just fits."""
    lm, rule = longrope, StringRule(DOT, 0, 12)
    contexts, suffixes = [(3,) * 23, (5, 6)], [(DOT,), (DOT, 8, 7, 6)]
    rows = Trajectories.from_rows([[3], list(range(1, 13))], [[True], [True] * 12], [0, 1])
    assert score_policy(lm, contexts, rows, rule).log_pf_BT.isfinite().all()
    given = GivenStrings(contexts, suffixes, rows, rule)
    assert score_strings(lm, given).isfinite().all()
