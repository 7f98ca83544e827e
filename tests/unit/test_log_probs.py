"""Log-probabilities of chosen tokens against the plain expression, gradients included."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm import log_probs
from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.vocabulary import StringRule, allowed_mask

V = 11


@pytest.fixture(params=[1, 3, 10**6], ids=["one row", "three rows", "all at once"])
def at_once(request, monkeypatch):
    """Pieces of so many rows."""
    monkeypatch.setattr(log_probs, "_numbers_at_once", lambda device: request.param * V)


def logits(*shape: int, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(*shape, V, generator=generator)).to(dtype).requires_grad_()


@pytest.mark.usefixtures("at_once")
def test_chosen_tokens():
    logits_BSV = logits(3, 4)
    token_BS = torch.randint(V, (3, 4), generator=torch.Generator().manual_seed(1))
    expected = logits_BSV.log_softmax(-1).gather(-1, token_BS[..., None])[..., 0]
    found = chosen_log_probs(logits_BSV, token_BS)
    torch.testing.assert_close(found, expected)
    weight_BS = torch.linspace(-1, 2, 12).view(3, 4)
    (wanted,) = torch.autograd.grad((expected * weight_BS).sum(), logits_BSV)
    (given,) = torch.autograd.grad((found * weight_BS).sum(), logits_BSV)
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("min_len", [0, 2])
@pytest.mark.parametrize("forbidden", [[], [4, 5]])
def test_strings_under_a_rule(min_len, forbidden):
    allowed_V = allowed_mask(V, forbidden, 1) if forbidden else None
    rule = StringRule(terminator=1, min_len=min_len, max_len=4, allowed_V=allowed_V)
    rows = Trajectories.from_rows(
        [[2, 3, 6, 7], [8, 9], [], [1]], [[True] * 4, [True, False], [], [True]], [0] * 4
    )
    logits_BSV = logits(4, 5)
    log_p_BT, stop_BS = string_log_probs(logits_BSV, rows, rule)
    may_stop_N = rule.n_actions_BS(rows).reshape(-1) >= min_len
    law_BSV = rule.log_probs(logits_BSV.reshape(-1, V), may_stop_N).view(4, 5, V)
    expected_BT = law_BSV[:, :-1].gather(-1, rows.token_BT[..., None])[..., 0]
    expected_BT = expected_BT.masked_fill(~rows.is_action_BT, 0.0)
    expected_BS = law_BSV[..., 1].masked_fill(~rule.terminable_BS(rows), 0.0)
    torch.testing.assert_close(log_p_BT, expected_BT)
    torch.testing.assert_close(stop_BS, expected_BS)

    def gradient(actions_BT, stops_BS):
        counted_BT = actions_BT.masked_fill(~actions_BT.isfinite(), 0.0)
        loss = (counted_BT * torch.linspace(1, 2, 16).view(4, 4)).sum() + stops_BS.square().sum()
        return torch.autograd.grad(loss, logits_BSV)[0]

    wanted, given = gradient(expected_BT, expected_BS), gradient(log_p_BT, stop_BS)
    torch.testing.assert_close(given, wanted.nan_to_num(), atol=1e-5, rtol=1e-4)
    assert given.abs().max() > 0.1


def test_half_precision_is_summed_in_fp32():
    half, token = logits(2, 3, dtype=torch.bfloat16), torch.tensor([[0, 1, 2], [3, 4, 5]])
    found = chosen_log_probs(half, token)
    expected = half.detach().float().log_softmax(-1).gather(-1, token[..., None])[..., 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), half)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().max() > 0.1
