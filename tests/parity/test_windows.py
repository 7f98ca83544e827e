"""Models with attention windows or chunks: every way of scoring against one plain forward a string."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.limits import attention_window
from gfn_runner.lm.packing import packs, score_prefixes, separate_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.prefixes import plain_prefixes
from gfn_runner.lm.sampling import _Batch, sample
from gfn_runner.lm.scoring import score_policy, score_strings
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import CHARACTERS, WINDOW, WINDOWED, at_end, tiny_lm

DOT, V = CHARACTERS.index("."), len(CHARACTERS)
RULE = StringRule(DOT, 0, 8)
NATS = 2e-4
SUFFIXES = ((DOT, 3, 14, 6), (7, 8))
# Tokens of the longest context: with 8 of a string and 4 of a suffix all are within the window of 16,
# some cross it, or the context alone is longer (than two windows, for chunks).
CONTEXTS = {"within": 5, "crossing": 12, "longer": 37}


@pytest.fixture(scope="module", params=WINDOWED)
def lm(request) -> LanguageModel:
    return tiny_lm(
        request.param, config=WINDOWED[request.param], adapter="random", packed_rewards="auto"
    )


def contexts_of(length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randint(1, V, (n,), generator=generator).tolist() for n in (length, 3)]


def strings(lm: LanguageModel, contexts: list[list[int]]) -> Trajectories:
    generator = torch.Generator().manual_seed(1)
    return sample(lm, contexts, 4, RULE, generator, temperature=2.0)


def full_log_probs(lm: LanguageModel, context: list[int], string: list[int]) -> list[float]:
    """log q of every action and of the end, from a single unpadded forward without a cache."""
    ids = torch.tensor([[*context, *string]])
    logits_SV = lm.model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 :]
    log_p_SV = logits_SV.double().log_softmax(dim=-1)
    return [log_p_SV[i, token].item() for i, token in enumerate([*string, DOT])]


@pytest.mark.parametrize("case", CONTEXTS)
@torch.no_grad()
def test_prefixes_strings_and_policy_equal_plain_forwards(lm, case):
    contexts = contexts_of(CONTEXTS[case])
    rows = strings(lm, contexts)
    arguments = (lm, GivenStrings(contexts, SUFFIXES, rows, RULE))
    plain_BS = plain_prefixes(*arguments)
    for way in (score_prefixes, separate_prefixes):
        torch.testing.assert_close(way(*arguments), plain_BS, atol=NATS, rtol=0)
    ends_B = at_end(plain_BS, rows)
    torch.testing.assert_close(score_strings(*arguments), ends_B, atol=NATS, rtol=0)
    scores = score_policy(lm, contexts, rows, RULE)
    for row in range(len(rows)):
        n = int(rows.length_B[row])
        expected = full_log_probs(lm, contexts[int(rows.condition_B[row])], rows.ids(row))
        found = [*scores.log_pf_BT[row, :n].tolist(), scores.log_pf_stop_BS[row, n].item()]
        if n == RULE.max_len:
            expected[-1] = 0.0
        assert found == pytest.approx(expected, abs=NATS)


@pytest.mark.parametrize("case", CONTEXTS)
@torch.no_grad()
def test_sampling_reads_the_same_distributions(lm, case, monkeypatch):
    """Logits while sampling, through a cache that crops keys, against those of one plain forward."""
    contexts, steps = contexts_of(CONTEXTS[case]), []
    draw = _Batch.read

    def reads(batch, lm, token_A):
        draw(batch, lm, token_A)
        steps.append((batch.row_A, batch.logits_AV))

    monkeypatch.setattr(_Batch, "read", reads)
    rows = strings(lm, contexts)
    assert max(map(len, map(rows.ids, range(len(rows))))) >= 6
    plain = []
    for row in range(len(rows)):
        ids = torch.tensor([[*contexts[int(rows.condition_B[row])], *rows.ids(row)]])
        logits_SV = lm.model(input_ids=ids, use_cache=False).logits[0]
        plain.append(logits_SV[ids.shape[1] - len(rows.ids(row)) :].log_softmax(-1))
    for step, (row_A, logits_AV) in enumerate(steps):
        for row, logits_V in zip(row_A.tolist(), logits_AV, strict=True):
            if len(plain[row]) > step:  # else it has ended and is still carried along
                torch.testing.assert_close(
                    logits_V.log_softmax(-1), plain[row][step], atol=NATS, rtol=0
                )


def test_packing_stops_at_the_window(lm, caplog):
    assert attention_window(lm.model.config) == WINDOW
    lm.window_logged = False
    short = strings(lm, contexts_of(3)).rows(torch.tensor([0]))
    one = Trajectories.from_rows([[4, 5]], [[True, True]], [0])
    packed = packs(lm, GivenStrings([(5,) * (WINDOW - 3)], [(3, 4)], one, RULE))
    # GPT-Neo counts the places of branches too.
    assert packed == (lm.model.config.model_type != "gpt_neo")
    lm.window_logged = False
    assert lm.packed_rewards == "auto"
    caplog.clear()
    with caplog.at_level("INFO", "gfn_runner"):
        assert not packs(lm, GivenStrings([(5,) * WINDOW], [(3, 4)], short, RULE))
        assert not packs(lm, GivenStrings([(5,) * WINDOW], [(3, 4)], short, RULE))
    assert caplog.text.count("packed scoring is off for sequences of") == 1
