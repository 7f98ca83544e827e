"""Logits of half-precision models in fp32: exact to fp32 from the vectors that the output layer reads."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm import output_layer
from gfn_runner.lm.adapters import with_adapter
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import CHARACTERS, character_tokenizer, random_model, tiny_lm

ROWS = [[3, 4, 5, 6], [7, 2]]
HALF = [torch.bfloat16, torch.float16]


def half_lm(
    architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, *, adapter: bool = False
) -> LanguageModel:
    model = random_model(architecture, len(CHARACTERS))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)
    model = model.to(dtype)
    if adapter:
        model = with_adapter(model, LoraSettings(rank=2, alpha=2, output_layer=True), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1)
    return LanguageModel(model, character_tokenizer())


def read_and_logits(lm: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors that the output layer reads, and the logits."""
    with lm.final_states() as read:
        logits = lm.whole_logits(ROWS)
    assert logits.dtype == torch.float32
    return read[0].double(), logits.double()


@pytest.fixture(params=[1, 40, 1 << 22], ids=["one row", "two rows", "all at once"])
def at_once(request, monkeypatch):
    """Numbers of weights in fp32 at once."""
    monkeypatch.setattr(output_layer, "_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gptj"])
@torch.no_grad()
def test_logits_are_the_exact_product(architecture, dtype):
    """gptj's output layer has a bias. In half precision the largest errors are 0.06 and more."""
    lm = half_lm(architecture, dtype)
    read, logits = read_and_logits(lm)
    layer = lm.model.get_output_embeddings()
    exact = read @ layer.weight.double().T
    if layer.bias is not None:
        exact = exact + layer.bias.double()
    assert exact.abs().max() > 16
    torch.testing.assert_close(logits, exact, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_an_adapted_output_layer_adds_to_it_in_fp32():
    lm = half_lm(adapter=True)
    read, logits = read_and_logits(lm)
    layer = lm.model.get_output_embeddings()
    delta = layer.get_delta_weight("default").double()
    exact = read @ (layer.get_base_layer().weight.double() + delta).T
    assert delta.abs().max() > 0
    torch.testing.assert_close(logits, exact, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_softcapping_and_scales_come_after_it():
    model = random_model("gemma2", len(CHARACTERS), hidden_size=32, intermediate_size=48,
                         num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=8, query_pre_attn_scalar=8,
                         final_logit_softcapping=30.0)  # fmt: skip
    lm = LanguageModel(model.to(torch.bfloat16), character_tokenizer())
    read, logits = read_and_logits(lm)
    product = read @ lm.model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(logits, 30 * (product / 30).tanh(), rtol=1e-5, atol=1e-4)


def test_nothing_changes_in_full_precision():
    assert "forward" not in vars(tiny_lm("llama").model.get_output_embeddings())


@pytest.mark.usefixtures("at_once")
def test_gradients_are_those_of_the_product():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 16, generator=generator).bfloat16().requires_grad_()
    layer = torch.nn.Linear(16, 20, bias=True)
    layer.to(torch.bfloat16)
    weight_NV = torch.randn(2, 3, 20, generator=generator)

    def gradients(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((logits.float() * weight_NV).sum(), [hidden, layer.weight])

    plain = gradients(layer(hidden))
    found = gradients(output_layer._forward(layer, hidden))
    for own, usual in zip(found, plain, strict=True):
        assert own.dtype == torch.bfloat16
        # Sums of 20 or 6 products, each rounded to 8 bits.
        torch.testing.assert_close(own, usual, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_policy_of_half_precision_is_scored_and_trained(adapter):
    lm = half_lm(adapter=adapter)
    rows = Trajectories.from_rows(ROWS, [[True] * 4, [True] * 2], [0, 1])
    scores = score_policy(lm, [(5, 9, 4), (8,)], rows, StringRule(0, 0, 5))
    assert scores.log_pf_BT.dtype == torch.float32
    if adapter:
        scores.log_pf_BT.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in lm.trainable().values())
