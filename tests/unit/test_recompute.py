"""Activations that are computed again: the same scores and gradients, from fewer kept numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule
from tests.tiny_models import tiny_lm

PROMPTS = [[3, 4, 5], [6, 7]]
STRINGS = [[4] * n for n in (1, 2, 3, 6, 6, 5, 2, 4)]
RULE = StringRule(terminator=1, min_len=0, max_len=6)


def rows() -> Trajectories:
    actions = [[True] * len(ids) for ids in STRINGS]
    return Trajectories.from_rows(STRINGS, actions, [0, 1] * 4, torch.device("cpu"))


@contextmanager
def kept_numbers() -> Iterator[set[int]]:
    """Sizes of what autograd keeps within it, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    total: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.add(sum(kept.values()))


def scored(architecture: str, recompute_above: int | None) -> tuple[list[Tensor], int]:
    """Scores and gradients, and bytes kept for the backward pass."""
    lm = tiny_lm(architecture, adapter="random")
    lm.recompute_above = recompute_above
    with kept_numbers() as total:
        scores = score_policy(lm, PROMPTS, rows(), RULE)
    weights = torch.linspace(0.5, 1.5, scores.log_pf_BT.numel()).view_as(scores.log_pf_BT)
    loss = (scores.log_pf_BT * weights).sum() + scores.log_pf_stop_BS.square().mean()
    loss.backward()
    gradients = [p.grad for p in lm.trainable().values() if p.grad is not None]
    assert len(gradients) == len(lm.trainable())
    detached = [scores.log_pf_BT.detach(), scores.log_pf_stop_BS.detach()]
    return [*detached, *gradients], total.pop()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_and_gradients_are_the_same_from_fewer_kept_numbers(architecture):
    expected, all_kept = scored(architecture, None)
    found, kept = scored(architecture, 8)
    assert any(value.abs().max() > 1e-3 for value in expected[2:])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert kept < all_kept / 2
    # Few tokens are kept.
    again, kept = scored(architecture, sum(map(len, STRINGS)))
    torch.testing.assert_close(again, expected)
    assert kept == all_kept
