"""What a device other than the CPU is asked for, seen without one.

The ``meta`` device computes shapes alone and raises where the host asks it for a number.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gfn_runner.data.tools import Tool
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm import log_probs
from gfn_runner.lm.log_probs import string_log_probs
from gfn_runner.lm.sampling import _Batch, _draw, sample
from gfn_runner.lm.vocabulary import StringRule, allowed_mask
from gfn_runner.train import matmul_precision

from ..tiny_models import CHARACTERS, tiny_lm

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


class Counted(torch.Tensor):
    """A mask that counts what is done with it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls += 1
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


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


def test_sampling_reads_the_vocabulary_mask_as_often_for_many_tokens_as_for_one():
    lm = tiny_lm("llama")
    calls = []
    for max_len in (1, 12):
        mask_V = allowed_mask(len(CHARACTERS), [3], 0).as_subclass(Counted)
        own = StringRule(0, max_len, max_len, mask_V)
        Counted.calls = 0
        rows = sample(lm, [[4, 5], [6]], 3, own, torch.Generator().manual_seed(0))
        assert rows.length_B.tolist() == [max_len] * 6
        calls.append(Counted.calls)
    assert calls[0] == calls[1] > 0


def test_a_mask_that_evaluation_asked_for_first_serves_a_training_step():
    own = rule()
    with torch.inference_mode():
        own.log_probs(torch.zeros(2, V))
    logits_NV = torch.zeros(2, V, requires_grad=True)
    own.log_probs(logits_NV)[:, END].sum().backward()
    assert logits_NV.grad is not None and logits_NV.grad[0, END] > 0


@pytest.mark.parametrize(("device", "pieces"), [("cpu", 190), ("meta", 6)])
def test_log_probabilities_take_pieces_by_device(device, pieces):
    rows, vocabulary = 190 * 2**6, 2**16  # 190 times the 2^22 numbers of a CPU's piece
    if device == "meta":
        logits_NV = torch.empty(rows, vocabulary, device=META)
    else:
        logits_NV = torch.empty(1).expand(rows, vocabulary)
    assert len(list(log_probs._pieces(logits_NV))) == pieces


class Always(Tool):
    """Answers every token."""

    trigger = ""

    def answer(self, text: str) -> str:
        return "2"


def test_what_a_tool_answers_is_put_in_for_all_rows_together(monkeypatch):
    """Writing it row by row would be a copy to the device for each."""
    lm, own = tiny_lm("llama"), StringRule(0, 4, 4, allowed_mask(len(CHARACTERS), [], 0))
    write, written = torch.Tensor.__setitem__, []
    monkeypatch.setattr(
        torch.Tensor, "__setitem__", lambda *given: written.append(0) or write(*given)
    )
    counts = []
    for n_samples in (2, 20):
        written.clear()
        generator = torch.Generator().manual_seed(0)
        rows = sample(lm, [[4, 5]], n_samples, own, generator, tool=Always())
        # Every second token is an answer.
        assert rows.is_action_BT.tolist() == [[True, False] * 4] * n_samples
        assert (rows.token_BT[:, 1::2] == CHARACTERS.index("2")).all()
        counts.append(len(written))
    assert counts[0] == counts[1]


def test_all_strings_are_read_as_one_by_one():
    rows = Trajectories.from_rows([[2, 5, 6], [], [7]], [[True] * 3, [], [True]], [0, 0, 1])
    assert rows.strings() == [rows.ids(row) for row in range(3)] == [[2, 5, 6], [], [7]]


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
