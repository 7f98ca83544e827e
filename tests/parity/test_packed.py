"""Packed scoring, cached policy scoring and their gradients against plain forwards, by architecture."""

from __future__ import annotations

import math

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm import merging, pieces, prefixes
from gfn_runner.lm.log_probs import string_log_probs
from gfn_runner.lm.packing import packs, score_prefixes
from gfn_runner.lm.pieces import GivenStrings, by_length, length_buckets
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

from ..tiny_models import ARCHITECTURES, CHARACTERS, N_POSITIONS, random_model, tiny_lm

DOT = CHARACTERS.index(".")
V = len(CHARACTERS)
NATS = 1e-4

# Ragged in every way: contexts, suffixes (two begin with the terminator), strings (one is empty).
CONTEXTS = ((5, 9, 4, 17, 3), (8,), (12, 2, 6), (20, 21, 22, 7))
SUFFIXES = ((DOT,), (DOT, 3, 14), (7, 8, DOT, 2), (9, 4))
STRINGS = (
    ((3, 8, 9, 11, 4), 0),
    ((), 1),
    ((14, 2, 2), 1),
    ((19,), 3),
    ((1, 2, 3, 4, 5), 2),
    ((), 2),
    ((6, 18), 0),
    ((11, 5, 3, 10), 3),
)
# A tool wrote the tokens at these places (row, step): one at a string's end, two in a row.
TOOL = ((0, 2), (4, 3), (4, 4), (7, 1))


def trajectories(*, tool: bool = False) -> Trajectories:
    actions = [
        [not (tool and (row, step) in TOOL) for step in range(len(string))]
        for row, (string, _) in enumerate(STRINGS)
    ]
    return Trajectories.from_rows([s for s, _ in STRINGS], actions, [c for _, c in STRINGS])


def rule(*, min_len: int = 0, some: bool = False) -> StringRule:
    allowed_V = allowed_mask(V, [0, 13, 15, 16, 23, 24], DOT) if some else None
    return StringRule(DOT, min_len, 5, allowed_V)


RULES = {
    "all": (rule(), False),
    "some_tokens": (rule(some=True), False),
    "min_len": (rule(min_len=2), False),
    "tool": (rule(), True),
    "everything": (rule(min_len=2, some=True), True),
}


@pytest.fixture(params=[True, False], ids=["cut_and_folded", "whole"])
def cut_and_folded(request, monkeypatch):
    """What saves arithmetic, wherever it can be done and nowhere: it may not change a number."""
    monkeypatch.setattr(merging, "_saves", lambda layer, tokens: request.param)
    monkeypatch.setattr(pieces, "_LEAST_SAVED", 1 if request.param else math.inf)
    monkeypatch.setattr(pieces, "_LEAST_SHARE", 0.0)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def lm(request):
    return tiny_lm(request.param, adapter="random")


def assert_same(left_BS: torch.Tensor, right_BS: torch.Tensor, nats: float = NATS) -> None:
    assert torch.equal(left_BS.isneginf(), right_BS.isneginf())
    torch.testing.assert_close(left_BS, right_BS, atol=nats, rtol=0)


@pytest.mark.parametrize("case", RULES)
@torch.no_grad()
def test_packed_equals_plain(lm, case):
    strings_rule, tool = RULES[case]
    arguments = (lm, GivenStrings(CONTEXTS, SUFFIXES, trajectories(tool=tool), strings_rule))
    plain_BS = plain_prefixes(*arguments)
    assert plain_BS.isfinite().any() and not plain_BS.isnan().any()
    assert_same(packed_prefixes(*arguments), plain_BS)


@torch.no_grad()
def test_rows_that_share_a_forward_change_nothing(lm, monkeypatch):
    """So few numbers of logits at once that every row is read alone, and its width is its own."""
    strings_rule, tool = RULES["everything"]
    arguments = (lm, GivenStrings(CONTEXTS, SUFFIXES, trajectories(tool=tool), strings_rule))
    whole_BS = packed_prefixes(*arguments)
    forwards = []
    rows_of = prefixes._packed_rows
    monkeypatch.setattr(prefixes, "logits_at_once", lambda device: 1)
    monkeypatch.setattr(
        prefixes,
        "_packed_rows",
        lambda *given: forwards.append(len(given[2].trajectories)) or rows_of(*given),
    )
    assert_same(packed_prefixes(*arguments), whole_BS)
    assert set(forwards) == {1} and len(forwards) >= len(STRINGS)


@torch.no_grad()
def test_states_that_are_scored_apart_change_nothing(lm, monkeypatch):
    """So small a mask that the branches of a string do not fit into one forward."""
    strings_rule, tool = RULES["everything"]
    given = GivenStrings(CONTEXTS, SUFFIXES, trajectories(tool=tool), strings_rule)
    whole_BS, groups = packed_prefixes(lm, given), []
    rows_of = prefixes._packed_rows
    monkeypatch.setattr(prefixes, "logits_at_once", lambda device: 2 * 12**2)
    monkeypatch.setattr(
        prefixes, "_packed_rows", lambda *given: groups.append(given[-1]) or rows_of(*given)
    )
    assert_same(packed_prefixes(lm, given), whole_BS)
    assert len({group.start for group in groups}) > 2


@torch.no_grad()
def test_plain_equals_a_sum_written_out(lm):
    """The reference itself against the definition: one forward for every single token."""
    rows = trajectories()
    plain_BS = plain_prefixes(lm, GivenStrings(CONTEXTS, SUFFIXES, rows, rule()))
    for row in (1, 3, 6):
        string, condition = STRINGS[row]
        for state in range(len(string) + 1):
            read, total = list(CONTEXTS[condition]), 0.0
            for token in (*string[:state], *SUFFIXES[condition]):
                logits_V = lm.model(input_ids=torch.tensor([read])).logits[0, -1]
                total += logits_V.double().log_softmax(dim=-1)[token].item()
                read.append(token)
            assert plain_BS[row, state].item() == pytest.approx(total, abs=NATS)


@torch.no_grad()
def test_distributions_are_not_flat(lm):
    """Else all the comparisons here would hold for a wrong mask too."""
    logits_NTV = lm.whole_logits([[*list(context), 7, 9, 11] for context in CONTEXTS])
    log_p_NV = logits_NTV[:, 0].log_softmax(dim=-1)
    assert (log_p_NV.max(dim=-1).values - log_p_NV.min(dim=-1).values).min() > 1.5
    assert (log_p_NV[0] - log_p_NV[1]).abs().max() > 0.3


@pytest.mark.usefixtures("cut_and_folded")
@pytest.mark.parametrize("case", RULES)
@torch.no_grad()
def test_policy_equals_token_by_token(lm, case):
    strings_rule, tool = RULES[case]
    rows = trajectories(tool=tool)
    scores = score_policy(lm, CONTEXTS, rows, strings_rule)
    assert torch.equal(scores.terminable_BS, strings_rule.terminable_BS(rows))
    for row, (string, condition) in enumerate(STRINGS):
        start = len(CONTEXTS[condition]) - 1
        logits_TV = lm.whole_logits([[*CONTEXTS[condition], *string]])[0, start:]
        n_actions = 0
        for state in range(len(string) + 1):
            may_stop = torch.tensor([n_actions >= strings_rule.min_len])
            log_p_V = strings_rule.log_probs(logits_TV[state][None], may_stop)[0]
            stop = 0.0
            if scores.terminable_BS[row, state] and n_actions < strings_rule.max_len:
                stop = log_p_V[DOT].item()
            assert scores.log_pf_stop_BS[row, state].item() == pytest.approx(stop, abs=NATS)
            if state == len(string):
                break
            expected = log_p_V[string[state]].item() if rows.is_action_BT[row, state] else 0.0
            assert scores.log_pf_BT[row, state].item() == pytest.approx(expected, abs=NATS)
            n_actions += int(rows.is_action_BT[row, state])
        assert (scores.log_pf_BT[row, len(string) :] == 0).all()


@pytest.mark.usefixtures("cut_and_folded")
@pytest.mark.parametrize("tool", [False, True])
def test_policy_gradients_equal_uncached_ones(lm, tool):
    """Through the shared prompts' cache too: the uncached forward reads every prompt anew."""
    rows, strings_rule = trajectories(tool=tool), rule(min_len=1, some=True)
    weights_BS = torch.randn(len(STRINGS), 6, generator=torch.Generator().manual_seed(3))

    def gradients(log_pf_BT, log_pf_stop_BS) -> dict[str, torch.Tensor]:
        total = (log_pf_BT * weights_BS[:, 1:]).sum() + (log_pf_stop_BS * weights_BS).sum()
        found = torch.autograd.grad(total, list(lm.trainable().values()))
        return dict(zip(lm.trainable(), found, strict=True))

    scores = score_policy(lm, CONTEXTS, rows, strings_rule)
    cached = gradients(scores.log_pf_BT, scores.log_pf_stop_BS)
    logits = []
    for string, condition in STRINGS:
        padded = [*string, *[0] * (5 - len(string))]
        start = len(CONTEXTS[condition]) - 1
        logits.append(lm.whole_logits([[*CONTEXTS[condition], *padded]])[0, start:])
    log_pf_BT, stop_BS = string_log_probs(torch.stack(logits), rows, strings_rule)
    stop_BS = stop_BS.masked_fill(strings_rule.forced_BS(rows), 0.0)
    plain = gradients(log_pf_BT, stop_BS)
    assert cached.keys() == {name for name, _ in lm.model.named_parameters() if "lora_" in name}
    largest = max(gradient.abs().max().item() for gradient in plain.values())
    for name, gradient in cached.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, plain[name], atol=1e-5 * largest, rtol=1e-3)


@pytest.mark.usefixtures("cut_and_folded")
@pytest.mark.parametrize("way", ["always", "never"])
def test_pieces_change_nothing(lm, way, monkeypatch):
    arguments = (lm, GivenStrings(CONTEXTS, SUFFIXES, trajectories(tool=True), rule(min_len=1)))
    monkeypatch.setattr(lm, "packed_rewards", way)
    whole_BS = score_prefixes(*arguments)
    # One row a piece; three rows a piece (24 tokens each when packed, 14 when plain).
    for budget in (1, 72):
        monkeypatch.setattr(lm, "max_tokens_per_forward", budget)
        assert_same(score_prefixes(*arguments), whole_BS)


def test_auto_takes_the_packed_way(lm, monkeypatch):
    monkeypatch.setattr(lm, "packed_rewards", "auto")
    monkeypatch.setattr(lm, "compared", {True: 0, False: 0})
    assert (
        packs(lm, GivenStrings(CONTEXTS, SUFFIXES, trajectories(), rule()))
        and lm.compared[True] == 32
    )
    assert (
        packs(lm, GivenStrings([*CONTEXTS, (3,) * 40], SUFFIXES, trajectories(), rule()))
        and lm.compared[True] == 64
    )
    packs(lm, GivenStrings([*CONTEXTS, (3,) * 60], SUFFIXES, trajectories(), rule()))
    assert lm.compared[True] == 60 + 5 + 4 - 1, "beyond the context of 64, and not compared again"


def test_auto_falls_back_where_packing_is_wrong(monkeypatch, caplog):
    """A model that reads positions off the order of tokens, whatever positions it is given."""
    lm = tiny_lm("gpt2", packed_rewards="auto")
    extend = lm.extend

    def ignorant(prompt, token_NQ, mask, position_NQ):
        steps_Q = torch.arange(token_NQ.shape[1])
        return extend(prompt, token_NQ, mask, prompt.length_N[:, None] + steps_Q)

    monkeypatch.setattr(lm, "extend", ignorant)
    arguments = (lm, GivenStrings(CONTEXTS, SUFFIXES, trajectories(), rule()))
    assert_same(score_prefixes(*arguments), plain_prefixes(*arguments), 1e-5)
    assert lm.packed_rewards == "never" and "packed scoring is off" in caplog.text


@torch.no_grad()
def test_padding_asks_for_no_position_that_does_not_exist():
    """The longest context with a short suffix beside a long suffix: each alone just fits."""
    lm = tiny_lm("gpt2")
    long, short = tuple(range(1, 29)) * 2, (5, 6)
    contexts = (long[: N_POSITIONS - 5], short)
    suffixes = ((DOT,), tuple(range(1, 21)))
    rows = Trajectories.from_rows([[3, 4, 5, 6], [7]], [[True] * 4, [True]], [0, 1])
    arguments = (lm, GivenStrings(contexts, suffixes, rows, rule()))
    assert_same(packed_prefixes(*arguments), plain_prefixes(*arguments))


def test_dropout_in_a_config_does_not_matter_after_load(tmp_path):
    """Sampling, policy and reward use one distribution even where the model is set to train."""
    from gfn_runner.lm.loading import load
    from gfn_runner.lm.model_config import LMSettings

    for architecture in ("gpt2", "opt", "llama"):
        names = {
            "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
            "opt": ("dropout", "attention_dropout", "layerdrop"),
            "llama": ("attention_dropout",),
        }[architecture]
        model = random_model(architecture, V, **dict.fromkeys(names, 0.5))
        folder = tmp_path / architecture
        model.save_pretrained(folder)
        tiny_lm(architecture).tokenizer.save_pretrained(folder)
        lm = load(LMSettings(name=str(folder), device="cpu"))
        rows = trajectories()
        with torch.no_grad():
            still = score_policy(lm, CONTEXTS, rows, rule()).log_pf_BT
            lm.model.train()
            moved = score_policy(lm, CONTEXTS, rows, rule()).log_pf_BT
        torch.testing.assert_close(moved, still, atol=1e-6, rtol=0)


def test_rows_are_cut_by_length_where_that_saves_padding(cut_and_folded, request, monkeypatch):
    lengths = [5, 1, 5, 1, 1, 3]
    buckets = length_buckets(lengths, pieces._LEAST_SAVED)
    assert sorted(place for bucket in buckets for place in bucket) == list(range(6))
    if request.node.callspec.params["cut_and_folded"]:
        assert buckets == [[1, 3, 4], [5], [0, 2]]
        # A cut must save a share of the tokens too: here 12 of 30, then only 2 of 15.
        monkeypatch.setattr(pieces, "_LEAST_SHARE", 0.25)
        assert length_buckets(lengths, pieces._LEAST_SAVED) == [[1, 3, 4], [0, 2, 5]]
    else:
        assert buckets == [list(range(6))]


def test_a_single_length_or_no_row_is_one_piece():
    assert length_buckets([4, 4, 4], 1) == [[0, 1, 2]]
    assert length_buckets([], 1) == [[]]


def test_contexts_that_would_be_read_again_are_weighed(cut_and_folded):
    rows = trajectories()
    padded = rows.token_BT.numel() - int(rows.length_B.sum())
    assert len(list(by_length(rows, again=padded + 1))) == 1


@torch.no_grad()
def test_only_states_at_which_a_string_may_end_get_a_branch(monkeypatch):
    lm, rule, read = tiny_lm("gpt2"), StringRule(terminator=1, min_len=3, max_len=5), []
    rows = Trajectories.from_rows([[2, 3, 4, 5], [4, 4, 4]], [[True] * 4, [True] * 3], [0, 0])
    extend = lm.extend
    monkeypatch.setattr(lm, "extend", lambda cache, token_NQ, *rest: (
        read.append(token_NQ.shape[1]), extend(cache, token_NQ, *rest))[1])  # fmt: skip
    found = packed_prefixes(lm, GivenStrings([[5, 6]], [[1, 3, 2]], rows, rule))
    assert read == [4 + 2 * 2], "trunk, and two branches of the suffix but its last token"
    assert found.isfinite().tolist() == [[False] * 3 + [True, True], [False] * 3 + [True, False]]
