"""The same numbers on a CUDA device as on the CPU, and a whole small run there."""

from __future__ import annotations

import json

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.prefixes import packed_prefixes, plain_prefixes
from gfn_runner.lm.sampling import sample
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.tasks.arithmetic import IntegerArithmetic

from ..runs import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
PROMPTS = ["Question: 3 + 4 - 9 = ? Answer:", "Question: 1 - 8 + 2 + 2 = ? Answer:"]
TEXTS = [(" 3 + 4 = 7, 7 - 9 = -2", 0), (" -7", 1), (" 1 - 8 = -7", 1)]


@pytest.fixture(autouse=True)
def exact_products():
    """fp32 products in fp32: a run may have left TF32 on."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@torch.no_grad()
def test_scores_are_those_of_the_cpu():
    found = []
    for device in ("cpu", DEVICE):
        lm = load(LMSettings(dtype="float32", device=device))
        rule = string_rule(lm, IntegerArithmetic(), 30)
        prompts = [lm.encode_prompt(text) for text in PROMPTS]
        suffixes = [lm.encode(f". The answer is {answer}.") for answer in (-2, -3)]
        ids = [lm.encode(text) for text, _ in TEXTS]
        rows = Trajectories.from_rows(
            ids, [[True] * len(i) for i in ids], [c for _, c in TEXTS], lm.device
        )
        arguments = (lm, GivenStrings(prompts, suffixes, rows, rule))
        packed_BS, plain_BS = packed_prefixes(*arguments), plain_prefixes(*arguments)
        torch.testing.assert_close(packed_BS, plain_BS, atol=1e-3, rtol=0)
        found.append((packed_BS.cpu(), score_policy(lm, prompts, rows, rule).log_pf_BT.cpu()))
    for cpu, gpu in zip(*found, strict=True):
        torch.testing.assert_close(gpu, cpu, atol=1e-2, rtol=0)


@torch.no_grad()
def test_samples_can_be_drawn_and_made_again():
    lm = load(LMSettings(dtype="float32", device=DEVICE))
    rule = string_rule(lm, IntegerArithmetic(), 12)
    prompts = [lm.encode_prompt(text) for text in PROMPTS]

    def drawn(seed: int) -> list[list[int]]:
        generator = torch.Generator(device=DEVICE).manual_seed(seed)
        rows = sample(lm, prompts, 8, rule, generator)
        return [rows.ids(row) for row in range(len(rows))]

    assert drawn(0) == drawn(0) != drawn(1)


def test_a_run_in_bfloat16(tmp_path):
    folder = run(tmp_path / "run", f"lm.device={DEVICE}", "lm.dtype=bfloat16")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["run/steps"] == 3 and metrics["train/loss"] is not None
    assert metrics["run/peak_gpu_memory_gib"] > 0
    assert torch.get_float32_matmul_precision() == "high"
