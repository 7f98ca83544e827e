"""The language model: adapter on and off, prompts, caches, what is loaded and what is saved."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, load_peft_weights
from safetensors.torch import load_file
from tokenizers import processors

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.adapters import with_adapter, with_saved_adapter
from gfn_runner.lm.architecture import cache_argument
from gfn_runner.lm.loading import load
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.scoring import score_policy
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import CHARACTERS, character_tokenizer, random_model, tiny_lm

V = len(CHARACTERS)
ROWS = [[3, 9, 4], [7, 2, 5, 11]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def lm(request):
    return tiny_lm(request.param, adapter="random")


@torch.no_grad()
def logits(lm) -> torch.Tensor:
    return lm.whole_logits(ROWS)[:, :3]


@pytest.mark.parametrize("architecture", ["gpt2", "gptj"])
def test_gelu_is_torchs_own_and_the_same_function(architecture):
    from transformers.activations import NewGELUActivation

    own = random_model(architecture, V)
    written_out = random_model(architecture, V)
    lm = LanguageModel(own, character_tokenizer())
    kinds = [type(module) for module in lm.model.modules()]
    assert torch.nn.GELU in kinds and NewGELUActivation not in kinds
    assert NewGELUActivation in [type(module) for module in written_out.modules()]
    ids = torch.tensor([ROWS[1]])
    torch.testing.assert_close(own(ids).logits, written_out(ids).logits, atol=1e-4, rtol=1e-4)


def test_within_reference_the_model_is_the_base_model_whatever_happens_there(lm):
    base = tiny_lm(lm.model.config.model_type)
    policy_NTV, trainable = logits(lm), list(lm.trainable())
    with pytest.raises(KeyError), lm.reference():
        reference_NTV = logits(lm)
        raise KeyError
    torch.testing.assert_close(reference_NTV, logits(base), atol=1e-5, rtol=0)
    assert (policy_NTV - reference_NTV).abs().max() > 0.1
    assert torch.equal(logits(lm), policy_NTV)
    assert trainable and list(lm.trainable()) == trainable
    assert all("lora_" in name and p.requires_grad for name, p in lm.trainable().items())


def test_a_fresh_adapter_is_the_base_model_and_its_seed_decides_it():
    fresh = tiny_lm("llama", adapter="fresh")
    torch.testing.assert_close(logits(fresh), logits(tiny_lm("llama")), atol=1e-6, rtol=0)
    options = LMSettings(device="cpu", lora=LoraSettings(rank=2, alpha=2))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loaded = (load(options, seed=seed).trainable() for seed in (1, 1, 2))
    first, again, other = (
        torch.cat([p.flatten() for name, p in lora.items() if "lora_A" in name]) for lora in loaded
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
def test_an_adapted_output_layer_is_saved_without_the_embeddings_it_shares(tmp_path):
    options = LMSettings(lora=LoraSettings(rank=2, alpha=2, targets=("q_proj",), output_layer=True))
    lm = load(options, seed=1)
    for parameter in lm.trainable().values():
        parameter.add_(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lm.save_adapter(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved) and any("lm_head" in name for name in saved)
    again = load(options, adapter=tmp_path / "adapter")
    assert torch.equal(logits(again), logits(lm))
    with lm.base():
        assert not torch.equal(logits(again), logits(lm))


@torch.no_grad()
def test_an_answer_adapter_makes_another_reference_and_leaves_policy_and_base(tmp_path):
    lm = tiny_lm("llama", adapter="random")
    with lm.reference():
        plain = logits(lm)
    policy, trainable = logits(lm), set(lm.trainable())
    assert not lm.has_answer_adapter and not lm.answer_parameters()
    lm.add_answer_adapter(LoraSettings(rank=2, alpha=2), seed=1)
    assert set(lm.trainable()) == trainable and len(lm.answer_parameters()) == len(trainable)
    with lm.reference():
        torch.testing.assert_close(logits(lm), plain, atol=1e-6, rtol=0)
    for parameter in lm.answer_parameters():
        parameter.add_(0.2)
    with lm.reference():
        answers = logits(lm)
        with lm.base():
            assert torch.equal(logits(lm), plain)
        assert torch.equal(logits(lm), answers)
    with lm.base(), lm.reference():
        assert torch.equal(logits(lm), plain)
    assert (answers - plain).abs().max() > 0.1 and torch.equal(logits(lm), policy)
    assert set(lm.trainable()) == trainable
    lm.save_adapter(tmp_path / "adapter")
    lm.save_answer_adapter(tmp_path / "answers")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "answers"}
    again = tiny_lm("llama", adapter="random")
    again.load_answer_adapter(tmp_path / "answers", m_steps=2)
    assert again.m_steps == 2 and set(again.trainable()) == trainable
    with again.reference():
        assert torch.equal(logits(again), answers)
    assert torch.equal(logits(again), policy)


def test_a_saved_adapter_is_read_by_peft(lm, tmp_path):
    lm.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2**20
    base = random_model(lm.model.config.model_type, V)
    read = LanguageModel(PeftModel.from_pretrained(base, str(tmp_path)), lm.tokenizer)
    torch.testing.assert_close(logits(read), logits(lm), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing"])
def test_a_folder_that_is_not_there(name):
    settings = LMSettings(name=name, device="cpu")
    (problem,) = settings.problems()
    assert problem.where == "lm.name" and "no folder" in problem.what
    with pytest.raises(UserError, match=r"lm\.name"):
        load(settings)


def with_tokens(template: str | None = None, **special: str) -> LanguageModel:
    """A character model whose tokenizer puts special tokens around a text."""
    tokenizer = character_tokenizer("ab", **special)
    if template is not None:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in special.values()]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=ids
        )
    return LanguageModel(random_model("gpt2", len(tokenizer)), tokenizer)


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
def test_a_prompt_begins_as_its_tokenizer_begins_it_and_is_not_closed(template):
    lm = with_tokens(template, bos_token="<s>", eos_token="</s>")
    assert lm.encode("ab") == (0, 1)
    assert lm.encode_prompt("ab") == (2, 0, 1) and lm.encode_prompt("") == (2,)
    # Unless its author closed it.
    assert lm.encode_prompt("ab</s>")[-1] == 3


def test_an_empty_prompt_needs_some_token():
    assert with_tokens(bos_token="<s>", eos_token="</s>").encode_prompt("") == (2,)
    assert with_tokens(eos_token="</s>").encode_prompt("") == (2,)
    none = with_tokens()
    assert none.encode_prompt("ab") == (0, 1)
    with pytest.raises(UserError, match="prompt: empty"):
        none.encode_prompt("")


@torch.no_grad()
def test_selecting_rows_leaves_the_source_as_it_is(lm):
    source = lm.prefill(ROWS)
    kept = [(layer.keys.clone(), layer.values.clone()) for layer in source.cache.layers]
    index_B = torch.tensor([1, 0, 1, 1])
    chosen = source.select(index_B)
    token_BQ = torch.tensor([[3], [4], [5], [6]])
    mask = torch.cat([chosen.mask_NP, torch.ones(4, 1, dtype=torch.bool)], dim=1)
    logits_BV = lm.extend(chosen, token_BQ, mask, chosen.length_N[:, None])[:, -1]
    assert source.cache.get_seq_length() == 4 and chosen.cache.get_seq_length() == 5
    assert source.length_N.tolist() == [3, 4]
    for layer, (keys, values) in zip(source.cache.layers, kept, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    for row, place in enumerate(index_B.tolist()):
        plain_V = lm.whole_logits([[*ROWS[place], *token_BQ[row].tolist()]])[0, -1]
        torch.testing.assert_close(logits_BV[row], plain_V, atol=1e-4, rtol=0)
    # And it can be used a second time.
    again = lm.extend(source.select(index_B), token_BQ, mask, chosen.length_N[:, None])[:, -1]
    assert torch.equal(again, logits_BV)


@torch.no_grad()
def test_padding_of_prompts_changes_nothing(lm):
    for found_V, row in zip(lm.prefill(ROWS).last_logits_NV, ROWS, strict=True):
        torch.testing.assert_close(found_V, lm.whole_logits([row])[0, -1], atol=1e-4, rtol=0)


def test_gradients_of_repeated_rows_are_added_in_one_order():
    """Indexing by a tensor adds them as threads come: equal runs would differ by rounding."""
    prompt = tiny_lm("llama", adapter="random").prefill(ROWS).select(torch.tensor([0, 0, 1]))
    arrays = [prompt.last_logits_NV]
    arrays += [array for layer in prompt.cache.layers for array in (layer.keys, layer.values)]
    assert {array.grad_fn.name() for array in arrays} == {"IndexSelectBackward0"}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "opt", "phi"])
def test_an_adapted_output_layer_comes_beside_those_of_the_blocks(architecture):
    def adapted(**options):
        lora = LoraSettings(rank=2, alpha=2, **options)
        model = with_adapter(random_model(architecture, 12), lora, 0)
        names = [name for name, _ in model.named_parameters() if "lora_" in name]
        return {name.partition("base_model.model.")[2].partition(".lora_")[0] for name in names}

    blocks, both = adapted(), adapted(output_layer=True)
    plain = random_model(architecture, 12)
    output = plain.get_output_embeddings()
    # "lm_head" by now; some architectures had a name of their own in transformers 5.0.
    (head,) = (name for name, part in plain.named_modules() if part is output)
    assert blocks and both == blocks | {head}
    named = next(iter(blocks)).rsplit(".", 1)[-1]
    of_named = adapted(targets=(named,), output_layer=True)
    assert of_named == {name for name in blocks if name.endswith(f".{named}")} | {head}


def test_saved_adapters_are_read_to_the_device_of_the_model(monkeypatch, tmp_path):
    """PEFT's own choice is the first GPU of the machine, whatever the rank."""
    tiny_lm("llama", adapter="random").save_adapter(tmp_path)
    read = []

    def read_weights(folder, device=None, **options):
        read.append(device)
        return load_peft_weights(folder, device="cpu", **options)

    monkeypatch.setattr("peft.peft_model.load_peft_weights", read_weights)
    monkeypatch.setattr("peft.peft_model.infer_device", lambda: "cuda")
    lm = tiny_lm("llama", adapter="fresh")
    with lm.adapter_of(tmp_path):
        pass
    lm.load_answer_adapter(tmp_path, m_steps=1)
    with_saved_adapter(tiny_lm("llama").model, tmp_path)
    assert read == ["cpu"] * 3


@torch.no_grad()
def test_a_forward_may_call_its_cache_by_either_name(monkeypatch):
    """transformers 5.24 has renamed it."""
    lm, rule = tiny_lm(), StringRule(1, 0, 4)
    rows = Trajectories.from_rows([[3, 4], [5]], [[True] * 2, [True]], [0, 1])
    expected = score_policy(lm, ROWS, rows, rule)
    forward, own = lm.model.forward, cache_argument(lm.model.forward)

    def newer(input_ids, attention_mask, position_ids, use_cache, cache=None):
        given = {"position_ids": position_ids, "use_cache": use_cache, own: cache}
        output = forward(input_ids=input_ids, attention_mask=attention_mask, **given)
        return SimpleNamespace(logits=output.logits, cache=output[own])

    def older(input_ids, attention_mask, position_ids, use_cache, past_key_values=None):
        output = newer(input_ids, attention_mask, position_ids, use_cache, past_key_values)
        return SimpleNamespace(logits=output.logits, past_key_values=output.cache)

    for renamed in (newer, older):
        monkeypatch.setattr(lm.model, "forward", renamed)
        found = score_policy(LanguageModel(lm.model, lm.tokenizer), ROWS, rows, rule)
        torch.testing.assert_close(found.log_pf_BT, expected.log_pf_BT)
        torch.testing.assert_close(found.log_pf_stop_BS, expected.log_pf_stop_BS)
