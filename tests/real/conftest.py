"""SmolLM2, loaded once for all tests; without it they are skipped."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.model_folders import SMOLLM2, SMOLLM2_FOLDER
from gfn_runner.lm.policy import LanguageModel


@pytest.fixture(autouse=True, scope="session")
def _the_model_is_there():
    if not (SMOLLM2_FOLDER / "config.json").is_file():
        pytest.skip(f"no model in {SMOLLM2_FOLDER}: run `make smollm2`")


@pytest.fixture(autouse=True)
def one_thread():
    """In place of that of all tests: a large model is faster on more than one; OMP_NUM_THREADS says."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """With an adapter that changes what the model says; do not train it."""
    options = LMSettings(
        name=SMOLLM2,
        device="cpu",
        dtype="float32",
        packed_rewards="always",
        lora=LoraSettings(rank=4, alpha=4, output_layer=True),
    )
    model = load(options, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model
