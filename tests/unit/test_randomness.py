"""Derived seeds: stable between processes, different between names."""

from __future__ import annotations

import torch

from gfn_runner.runtime.seeds import derived_seed, rng_for, torch_generator_for


def test_seeds_are_fixed_for_ever():
    """Also from one process to the next: Python's own hash is not."""
    assert derived_seed("sample", 0, 1) == 6519852188717331505


def test_parts_do_not_run_into_each_other():
    parts = [(), ("",), ("a", "b"), ("ab",), ("a", 1, 2), ("a", 12), ("b", "a"), ("a", "b", "")]
    seeds = [derived_seed(*own) for own in parts]
    assert len(set(seeds)) == len(seeds) - 1  # nothing at all and one empty text are alike
    assert derived_seed("a", 1) == derived_seed("a", "1")


def test_generators_are_their_own():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = torch.rand(3, generator=torch_generator_for("cpu", "x", 1))
    assert torch.equal(one, torch.rand(3, generator=torch_generator_for("cpu", "x", 1)))
    assert not torch.equal(one, torch.rand(3, generator=torch_generator_for("cpu", "x", 2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert rng_for("x", 1).random() == rng_for("x", 1).random() != rng_for("x", 2).random()
