"""Phases: timed, named in a profile, and named with what to lower where memory runs out."""

from __future__ import annotations

import time

import pytest
import torch

from gfn_runner.errors import UserError
from gfn_runner.runtime.phases import LOWER, Phases


def test_seconds_add_up_until_they_are_taken():
    phases = Phases()
    for _ in range(2):
        with phases("sample"):
            time.sleep(0.01)
    with pytest.raises(RuntimeError, match="shapes"), phases("reward"):
        raise RuntimeError("shapes do not match")
    taken = phases.take()
    assert taken.keys() == {"sample", "reward"} and taken["sample"] >= 0.02
    assert phases.take() == {}


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_names_phase_and_settings(name, error):
    with pytest.raises(UserError) as caught, Phases()(name):
        raise error
    (problem,) = caught.value.problems
    assert repr(name) in problem.where and "\n" not in problem.what
    assert "lm." in problem.fix or "sampling." in problem.fix


def test_what_torch_really_raises_is_recognised():
    with pytest.raises(UserError, match="phase 'policy'"), Phases()("policy"):
        torch.empty(2**60, dtype=torch.uint8)


def test_a_phase_has_its_line_in_torchs_profile():
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile, Phases()("objective"):
        torch.ones(2).sum()
    assert "gfn/objective" in {event.key for event in profile.key_averages()}
