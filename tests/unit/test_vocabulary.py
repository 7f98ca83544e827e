"""The rule for strings: what may be written, when a string may end and when it must."""

from __future__ import annotations

import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

V, END = 6, 5


def trajectories(*rows: tuple[list[int], str]) -> Trajectories:
    """Rows of tokens with their flags: ``a`` an action, ``t`` a tool's token."""
    flags = [[flag == "a" for flag in text] for _, text in rows]
    return Trajectories.from_rows([ids for ids, _ in rows], flags, [0] * len(rows))


def states(mask_BS: torch.Tensor) -> list[list[int]]:
    return [row.nonzero()[:, 0].tolist() for row in mask_BS]


def logits() -> torch.Tensor:
    return 2 * torch.randn(4, V, generator=torch.Generator().manual_seed(0))


def test_where_a_string_may_always_end_nothing_is_masked_for_it():
    n_actions = torch.tensor([0, 1, 2])
    assert StringRule(END, 0, 3).may_stop(n_actions) is None
    assert StringRule(END, 1, 3).may_stop(n_actions).tolist() == [False, True, True]
    logits_NV = logits()
    assert StringRule(END, 0, 3).masked(logits_NV, None) is logits_NV


def test_a_vocabulary_that_was_first_used_in_inference_mode_serves_training_too():
    rule = StringRule(END, 0, 3, allowed_mask(V, [1], END))
    with torch.inference_mode():
        rule.log_probs(logits())
    logits_NV = logits().requires_grad_()
    rule.log_probs(logits_NV)[:, END].sum().backward()
    assert (logits_NV.grad[:, 1] == 0).all() and (logits_NV.grad[:, END] > 0).all()


def test_the_vocabulary_goes_to_the_device_of_the_logits():
    rule = StringRule(END, 0, 3, allowed_mask(V, [1], END))
    rule.log_probs(logits())
    assert rule.log_probs(torch.empty(2, V, device="meta")).device.type == "meta"


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
    # At three actions the bound is reached; the string still ends after the tool's last token.
    assert states(rule.forced_BS(rows)) == [[6], []]
