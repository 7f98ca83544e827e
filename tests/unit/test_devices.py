"""What a device other than the CPU is asked for, seen without one.

The ``meta`` device computes shapes alone and raises where the host asks it for a number.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.log_probs import string_log_probs
from gfn_runner.lm.sampling import _Batch, _draw
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from gfn_runner.train import matmul_precision

V, END, META = 50, 1, torch.device("meta")


class Copies(TorchDispatchMode):
    """Sizes of the tensors that go from one device to another within it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = function(*args, **(kwargs or {}))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if isinstance(result, torch.Tensor) and any(t.device != result.device for t in tensors):
            self.sizes.append(max(t.numel() for t in tensors))
        return result


def rule(min_len: int = 2) -> StringRule:
    return StringRule(END, min_len, 6, allowed_mask(V, [3, 4], END))


def test_the_vocabulary_mask_is_copied_to_a_device_once():
    own = rule()
    logits_AV = torch.empty(4, V, device=META)
    n_A = torch.empty(4, dtype=torch.long, device=META)
    zero_A = torch.empty(4, device=META)
    batch = _Batch(None, n_A, logits_AV, None, n_A, zero_A, n_A, n_A > 0)  # type: ignore[arg-type]
    with Copies() as copies:
        for _ in range(5):
            token_A, broken_A = _draw(batch, own, None)  # type: ignore[arg-type]
    assert token_A.device == broken_A.device == META
    assert copies.sizes == [V]


def test_scoring_strings_asks_the_device_for_no_number():
    """Nor does it copy anything but the mask."""
    ids = [[2, 5, 6], [7]]
    rows = Trajectories.from_rows(ids, [[True] * len(i) for i in ids], [0, 0])
    names = ("token_BT", "length_B", "is_action_BT", "condition_B")
    there = Trajectories(*(getattr(rows, name).to(META) for name in names))
    logits_BSV = torch.empty(2, 4, V, device=META, requires_grad=True)
    with Copies() as copies:
        log_p_BT, log_p_stop_BS = string_log_probs(logits_BSV, there, rule())
        (log_p_BT.sum() + log_p_stop_BS.sum()).backward()
    assert copies.sizes == [V]


@pytest.mark.parametrize(
    ("device", "dtype", "chosen"),
    [
        ("cpu", torch.float32, "highest"),
        ("cpu", torch.bfloat16, "highest"),
        ("cuda", torch.float32, "highest"),
        ("cuda", torch.bfloat16, "high"),
        ("cuda", torch.float16, "high"),
    ],
)
def test_tf32_is_for_adapters_beside_half_precision(device, dtype, chosen):
    """fp32 weights are chosen for exact numbers; a setting decides otherwise."""
    model = torch.nn.Linear(2, 2).to(dtype)
    lm: Any = SimpleNamespace(model=model, device=torch.device(device))
    assert matmul_precision(None, lm) == chosen
    for asked in ("highest", "high", "medium"):
        assert matmul_precision(asked, lm) == asked
