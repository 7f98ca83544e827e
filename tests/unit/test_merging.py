"""Adapters that are part of the weights for a while: the same policy, and no trace afterwards."""

from __future__ import annotations

import pytest
import torch

from gfn_runner.lm import merging, sampling
from gfn_runner.lm.loading import load
from gfn_runner.lm.merging import folded, merged
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.vocabulary import StringRule
from tests.tiny_models import ARCHITECTURES, tiny_lm

ROWS = [[2, 5, 3, 4], [6, 2]]


def weights(lm):
    return dict(lm.model.named_parameters())


def merged_layers(lm):
    return [module for module in lm.model.modules() if getattr(module, "merged_adapters", None)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_logits_are_the_same_and_the_weights_come_back(architecture):
    lm = tiny_lm(architecture, adapter="random")
    before = weights(lm)
    copies = {name: p.clone() for name, p in before.items()}
    trainable = set(lm.trainable())
    apart = lm.whole_logits(ROWS)
    with lm.base():
        base = lm.whole_logits(ROWS)
    with merged(lm.model):
        assert all(len(layer.merged_adapters) == 1 for layer in merged_layers(lm))
        assert merged_layers(lm)
        torch.testing.assert_close(lm.whole_logits(ROWS), apart, atol=1e-4, rtol=1e-4)
    assert (apart - base).abs().max() > 0.1
    after = weights(lm)
    assert all(after[name] is before[name] for name in before)
    assert all(torch.equal(after[name], copies[name]) for name in before)
    assert torch.equal(lm.whole_logits(ROWS), apart) and set(lm.trainable()) == trainable


@torch.no_grad()
def test_an_output_layer_that_shares_the_embeddings_leaves_them_alone():
    lm = load(LMSettings(device="cpu", lora=LoraSettings(rank=2, alpha=2, output_layer=True)))
    for parameter in lm.trainable().values():
        parameter.add_(0.1)
    apart = lm.whole_logits(ROWS)
    with merged(lm.model):
        torch.testing.assert_close(lm.whole_logits(ROWS), apart, atol=1e-4, rtol=1e-4)
    base = lm.model.get_base_model()
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


@torch.no_grad()
def test_large_weights_with_a_small_adapter_stay_apart(monkeypatch):
    """A sum of theirs would be a second copy of the model, for a few percent of the products."""
    lm = tiny_lm("llama", adapter="random", rank=2)  # 2 (32 + 32) products beside 32 · 32
    apart = lm.whole_logits(ROWS)
    monkeypatch.setattr(merging, "_SMALL", 0)
    with merged(lm.model):
        assert not merged_layers(lm)
        assert torch.equal(lm.whole_logits(ROWS), apart)
    wide = tiny_lm("llama", adapter="random", rank=8)  # 8 · 64 · 4 ≥ 32 · 32
    with merged(wide.model):
        assert merged_layers(wide)


@torch.no_grad()
def test_what_is_off_or_of_low_precision_stays_apart():
    lm = tiny_lm(adapter="random")
    with lm.base(), merged(lm.model):
        assert not merged_layers(lm)
    lm.model.to(torch.bfloat16)
    with merged(lm.model):
        assert not merged_layers(lm)
    plain = tiny_lm()
    with merged(plain.model):
        assert plain.whole_logits(ROWS).isfinite().all()


def test_an_error_within_gives_the_weights_back():
    lm = tiny_lm(adapter="random")
    before = weights(lm)
    with pytest.raises(RuntimeError, match="within"), merged(lm.model):
        raise RuntimeError("within")
    after = weights(lm)
    assert all(after[name] is before[name] for name in before)
    assert not merged_layers(lm)
    assert not any("weight" in vars(module) for module in lm.model.modules())


def test_samples_are_those_of_an_adapter_apart(monkeypatch):
    lm = tiny_lm(adapter="random")
    rule = StringRule(terminator=1, min_len=0, max_len=5)

    def draw():
        generator = torch.Generator().manual_seed(0)
        rows = sampling.sample(lm, ROWS, 20, rule, generator)
        return [rows.ids(row) for row in range(len(rows))]

    with_merging, calls = draw(), []

    def unmerged(model):
        calls.append(model)
        return torch.no_grad()

    monkeypatch.setattr(sampling, "merged", unmerged)
    assert draw() == with_merging and calls == [lm.model]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folded_weights_give_the_same_gradients(architecture, monkeypatch):
    monkeypatch.setattr(merging, "_saves", lambda layer, tokens: True)
    lm = tiny_lm(architecture, adapter="random")
    weight_NTV = torch.randn(2, 4, lm.vocab_size, generator=torch.Generator().manual_seed(0))

    def gradients():
        logits_NTV = lm.whole_logits(ROWS)
        (logits_NTV * weight_NTV).sum().backward()
        found = {name: p.grad.clone() for name, p in lm.trainable().items()}
        lm.model.zero_grad()
        return logits_NTV.detach(), found

    logits_apart, apart = gradients()
    with folded(lm.model, tokens=8):
        assert merged_layers(lm)
        logits_NTV = lm.whole_logits(ROWS)
    # Backwards after the context has ended, as training does it.
    (logits_NTV * weight_NTV).sum().backward()
    torch.testing.assert_close(logits_NTV.detach(), logits_apart, atol=1e-4, rtol=1e-4)
    assert not merged_layers(lm) and apart
    for name, parameter in lm.trainable().items():
        scale = apart[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, apart[name], atol=1e-4 * scale, rtol=1e-3)
    again, _ = gradients()
    assert torch.equal(again, logits_apart)


@pytest.mark.parametrize(
    ("rank", "tokens", "folds"), [(32, 1000, True), (1, 1000, False), (32, 4, False)]
)
def test_folding_is_for_adapters_that_are_large_for_their_layer(rank, tokens, folds):
    lm = load(LMSettings(device="cpu", lora=LoraSettings(rank=rank)))
    with folded(lm.model, tokens):
        assert bool(merged_layers(lm)) == folds
