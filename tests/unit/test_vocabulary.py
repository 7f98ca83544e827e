"""The rule for strings: what may be written, when a string may end and when it must."""

from __future__ import annotations

import math

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.log_probs import string_log_probs
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

V, END = 6, 5


def trajectories(*rows: tuple[list[int], str]) -> Trajectories:
    """Rows of tokens with their flags: ``a`` an action, ``t`` a tool's token."""
    flags = [[flag == "a" for flag in text] for _, text in rows]
    return Trajectories.from_rows([ids for ids, _ in rows], flags, [0] * len(rows))


def states(mask_BS: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask_BS]


def logits(n: int = 4, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(n, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bounds", [(-1, 3), (4, 3)])
def test_bounds_out_of_order_are_refused(bounds):
    with pytest.raises(ValueError, match="min_len"):
        StringRule(END, *bounds)


def test_a_vocabulary_without_the_terminator_is_refused():
    with pytest.raises(ValueError, match="terminator"):
        StringRule(END, 0, 3, torch.tensor([True] * 5 + [False]))


def test_the_allowed_mask_always_holds_the_terminator():
    assert allowed_mask(V, [], END).all()
    assert allowed_mask(V, [0, 2, END], END).tolist() == [False, True, False, True, True, True]


def test_what_is_left_is_renormalised():
    rule = StringRule(END, 0, 3, allowed_mask(V, [1, 3], END))
    logits_NV = logits()
    p_NV = rule.log_probs(logits_NV, torch.tensor([True, False, True, False])).exp()
    whole_NV = logits_NV.softmax(-1)
    for row, may_stop in enumerate((True, False, True, False)):
        open_ = [0, 2, 4] + [END] * may_stop
        expected = torch.zeros(V)
        expected[open_] = whole_NV[row, open_] / whole_NV[row, open_].sum()
        torch.testing.assert_close(p_NV[row], expected)
        assert (p_NV[row] == 0).sum() == V - len(open_)
    torch.testing.assert_close(p_NV.sum(-1), torch.ones(4))


def test_without_a_mask_only_the_terminator_can_be_closed():
    rule = StringRule(END, 0, 3)
    logits_NV = logits(2)
    log_p_NV = rule.log_probs(logits_NV, torch.tensor([True, False]))
    torch.testing.assert_close(log_p_NV[0], logits_NV[0].log_softmax(-1))
    assert log_p_NV[1, END] == -math.inf
    torch.testing.assert_close(log_p_NV[1, :END], logits_NV[1, :END].log_softmax(-1))


def test_the_mask_leaves_its_arguments_as_they_are_and_gives_fp32():
    allowed_V, logits_NV = allowed_mask(V, [1], END), logits().bfloat16()
    before, rule = logits_NV.clone(), StringRule(END, 0, 3, allowed_V)
    masked_NV = rule.masked(logits_NV, torch.zeros(4, dtype=torch.bool))
    assert masked_NV.dtype == torch.float32 and masked_NV[:, [1, END]].isneginf().all()
    assert torch.equal(logits_NV, before) and allowed_V[END] and not allowed_V[1]
    assert torch.equal(masked_NV[:, [0, 2, 3, 4]], before.float()[:, [0, 2, 3, 4]])


def test_a_string_may_end_from_min_len_on_and_must_at_max_len():
    rows = trajectories(([0, 1, 2, 3], "aaaa"), ([0, 1], "aa"), ([], ""))
    assert states(StringRule(END, 0, 4).terminable_BS(rows)) == [[0, 1, 2, 3, 4], [0, 1, 2], [0]]
    assert states(StringRule(END, 2, 4).terminable_BS(rows)) == [[2, 3, 4], [2], []]
    assert states(StringRule(END, 0, 4).forced_BS(rows)) == [[4], [], []]
    assert states(StringRule(END, 2, 2).forced_BS(rows))[1] == [2]
    assert states(StringRule(END, 0, 0).forced_BS(trajectories(([], "")))) == [[0]]


def test_a_tools_tokens_are_no_actions():
    # written 0 1, the tool says 2 3, written 4, the tool says 0
    rows = trajectories(([0, 1, 2, 3, 4, 0], "aattat"), ([0, 1], "aa"))
    rule = StringRule(END, 2, 3)
    assert rule.n_actions_BS(rows)[0].tolist() == [0, 1, 2, 2, 2, 3, 3]
    assert states(rule.awaits_tool_BS(rows)) == [[2, 3, 5], []]
    # With two actions there is enough, but the tool has not finished speaking.
    assert states(rule.terminable_BS(rows)) == [[4, 6], [2]]
    # At three actions the bound is reached; the string still ends behind the tool's last token.
    assert states(rule.forced_BS(rows)) == [[6], []]


def test_a_terminator_written_inside_ends_the_string_there():
    rows = trajectories(([0, END, 1, 2], "aaaa"), ([0, END, 1], "ata"), ([END], "a"))
    rule = StringRule(END, 0, 4)
    assert states(rule.went_on_BS(rows))[0][:3] == [2, 3, 4]
    # State 1 is the string [0]; an observation may hold the terminator (row 1).
    assert states(rule.terminable_BS(rows)) == [[0, 1], [0, 2, 3], [0]]


def test_padding_is_no_state():
    rows = trajectories(([0], "a"), ([1, 2, 3], "aaa"))
    rows.token_BT[0, 1:] = END
    assert states(StringRule(END, 0, 3).terminable_BS(rows)) == [[0, 1], [0, 1, 2, 3]]


def test_log_probs_of_a_string_are_the_rules_own():
    rule = StringRule(END, 1, 3, allowed_mask(V, [1], END))
    rows = trajectories(([0, 2, 4], "ata"), ([3, 1], "aa"), ([2], "a"))
    logits_BSV = 2 * torch.randn(3, 4, V, generator=torch.Generator().manual_seed(1))
    log_p_BT, stop_BS = string_log_probs(logits_BSV, rows, rule)
    terminable_BS = rule.terminable_BS(rows)
    for row in range(3):
        n_actions = 0
        for state in range(int(rows.length_B[row]) + 1):
            may_stop = torch.tensor([n_actions >= 1])
            log_p_V = rule.log_probs(logits_BSV[row, state][None], may_stop)[0]
            stop = log_p_V[END].item() if terminable_BS[row, state] else 0.0
            assert stop_BS[row, state].item() == pytest.approx(stop, abs=1e-5)
            if state < rows.length_B[row]:
                chosen = bool(rows.is_action_BT[row, state])
                expected = log_p_V[rows.token_BT[row, state]].item() if chosen else 0.0
                assert log_p_BT[row, state].item() == pytest.approx(expected, abs=1e-5)
                n_actions += chosen
    assert log_p_BT[1, 1] == -math.inf  # token 1 may not be written
    assert log_p_BT[2, 1:].tolist() == [0.0, 0.0] and stop_BS[2, 2:].tolist() == [0.0, 0.0]
