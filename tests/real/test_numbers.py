"""Log-probabilities on real weights: packed and per prefix, sampler and scorer."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.lm import sampling
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy, score_strings
from gfn_runner.lm.vocabulary import StringRule

pytestmark = pytest.mark.real
NATS = 1e-3

CONTEXTS = (
    "The following is a random integer drawn uniformly between 0 and 100:",
    "She opened the old box in the attic and found",
    "Review: a waste of two hours.\nThis review is",
)
SUFFIXES = (". That is the number.", ".", ", so it is negative.")


def test_packed_is_per_prefix(lm):
    rule = StringRule(lm.encode(".")[0], 0, 8)
    contexts = [lm.encode_prompt(text) for text in CONTEXTS]
    suffixes = [lm.encode(text) for text in SUFFIXES]
    with lm.reference():
        strings = sample(lm, contexts, 2, rule, torch.Generator().manual_seed(0))
        packed_BS = packed_prefixes(lm, GivenStrings(contexts, suffixes, strings, rule))
        plain_BS = plain_prefixes(lm, GivenStrings(contexts, suffixes, strings, rule))
        whole_B = score_strings(lm, GivenStrings(contexts, suffixes, strings, rule))
    assert strings.length_B.max() >= 4
    assert torch.equal(packed_BS.isneginf(), plain_BS.isneginf())
    torch.testing.assert_close(packed_BS, plain_BS, atol=NATS, rtol=0)
    end_B = plain_BS.gather(1, strings.length_B[:, None])[:, 0]
    torch.testing.assert_close(whole_B, end_B, atol=NATS, rtol=0)


def test_what_the_sampler_drew_by_is_what_the_scorer_says(lm, monkeypatch):
    rule = StringRule(lm.encode(".")[0], 1, 8)
    prompts = [lm.encode_prompt(text) for text in CONTEXTS]
    n = 8
    log_q_B = torch.zeros(len(prompts) * n, dtype=torch.float64)
    draw = sampling._draw

    def recorded(batch, rule, generator):
        token_A, broken_A = draw(batch, rule, generator)
        log_p_AV = rule.log_probs(batch.logits_AV, rule.may_stop(batch.n_actions_A))
        log_p_A = log_p_AV.gather(1, token_A[:, None])[:, 0]
        # The terminator at the largest length is certain; rows that have ended draw nothing.
        certain_A = batch.done_A | (batch.n_actions_A >= rule.max_len)
        log_q_B[batch.row_A] += log_p_A.masked_fill(certain_A, 0.0).double()
        return token_A, broken_A

    monkeypatch.setattr(sampling, "_draw", recorded)
    strings = sample(lm, prompts, n, rule, torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = score_policy(lm, prompts, strings, rule)
    end_B = scores.log_pf_stop_BS.gather(1, strings.length_B[:, None])[:, 0]
    scored_B = (scores.log_pf_BT * strings.token_mask_BT).sum(dim=1) + end_B
    torch.testing.assert_close(log_q_B.float(), scored_B, atol=NATS, rtol=0)
    assert log_q_B.unique().numel() > n
