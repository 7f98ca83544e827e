"""Which kinds of models are refused for what they are, and which load for text although they are more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from gfn_runner.errors import UserError
from gfn_runner.lm.adapters import with_adapter
from gfn_runner.lm.architecture import kind_problems, without_dropout
from gfn_runner.lm.loading import load
from gfn_runner.lm.merging import merged
from gfn_runner.lm.model_config import LMSettings, LoraSettings
from gfn_runner.lm.packing import score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.text_checks import text_problems
from gfn_runner.lm.vocabulary import StringRule

from ..tiny_models import N_POSITIONS, as_trajectories, character_tokenizer, draw_adapter

CHARACTERS = "\n 0123456789,abcdefghijklmnop"
V = len(CHARACTERS)
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.3}
TEXT: dict[str, Any] = SPECIAL | {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": N_POSITIONS,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def made(model_type: str, options: dict[str, Any], auto: Any = AutoModelForCausalLM) -> Any:
    """A random model; the same for the same arguments."""
    config = AutoConfig.for_model(model_type, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def saved(folder: Path, model: Any) -> LMSettings:
    model.save_pretrained(folder)
    character_tokenizer(CHARACTERS).save_pretrained(folder)
    return LMSettings(name=str(folder), device="cpu", lora=LoraSettings(rank=2, alpha=2))


def adapted(model: Any) -> set[str]:
    """Names of layers and parameters that an adapter trains."""
    names = (name for name, p in model.named_parameters() if p.requires_grad)
    return {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names}


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0]


# -- refused by their config ------------------------------------------------------------------------

REFUSED = {
    "an encoder, ": ("bert", "modernbert", "roberta"),
    "an encoder–decoder model": ("t5", "bart", "whisper"),
    "not a language model": ("vit",),
    "recurrent or hybrid": ("mamba2", "rwkv", "xlstm", "recurrent_gemma", "bamba"),
    "recurrent or hybrid model (layers of type linear_attention)": (
        "mamba", "jamba", "qwen3_next", "qwen3_5", "granitemoehybrid", "minimax",
    ),
    "layers of type hybrid": ("falcon_h1",),
    "layers of type conv": ("lfm2",),
    "without a cache": ("openai-gpt", "xlnet"),
    "bidirectional attention": ("paligemma", "gemma3_text"),
}  # fmt: skip
# Kinds that are refused only with these.
OPTIONS: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "gemma3_text": {"use_bidirectional_attention": True},
}


@pytest.mark.parametrize(
    ("model_type", "shown"), [(kind, shown) for shown, kinds in REFUSED.items() for kind in kinds]
)
def test_a_model_of_another_kind_is_refused_by_its_config(model_type, shown):
    config = AutoConfig.for_model(model_type, **OPTIONS.get(model_type, {}))
    (problem,) = kind_problems(config, "x", "lm.name")
    assert problem.where == "lm.name" and f"({model_type}) is " in problem.what
    assert shown in problem.what and "decoder-only" in problem.allowed


ACCEPTED = (
    "llama", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "phi3", "mistral",
    "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_oss",
    "llama4", "llava", "qwen2_vl", "mistral3", "idefics3", "olmo2", "cohere2", "stablelm", "smollm3",
)  # fmt: skip


@pytest.mark.parametrize("model_type", ACCEPTED)
def test_decoders_are_accepted(model_type):
    assert not list(kind_problems(AutoConfig.for_model(model_type), "x", "lm.name"))


def test_the_kind_is_said_before_weights_are_looked_at(tmp_path):
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        list(text_problems(LMSettings(name=str(tmp_path)), "\n", [], 8))
    (problem,) = caught.value.problems
    assert problem.where == "lm.name" and "encoder–decoder" in problem.what


# -- refused when they are loaded: their config does not tell -----------------------------------------

_WITHOUT_HEADS = {k: v for k, v in TEXT.items() if k not in ("num_key_value_heads", "head_dim")}
UNTOLD: dict[str, dict[str, Any]] = {
    # Its positions begin after those of padding.
    "roberta": _WITHOUT_HEADS | {"is_decoder": True, "pad_token_id": 1},
    # Learned positions, and no position ids.
    "trocr": SPECIAL | {
        "vocab_size": V, "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4,
        "decoder_ffn_dim": 48, "max_position_embeddings": N_POSITIONS, "init_std": 0.3,
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", UNTOLD)
def test_a_model_that_takes_no_account_of_padding_is_refused(model_type, tmp_path):
    settings = saved(tmp_path, made(model_type, UNTOLD[model_type]))
    with pytest.raises(UserError, match=rf"lm\.name: .*\({model_type}\) is not supported.*padding"):
        load(settings)


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bert", _WITHOUT_HEADS | {"is_decoder": True}),
        # A hybrid kind whose layers are all attention, as the small ones of Granite 4.
        ("granitemoehybrid", TEXT | {
            "layer_types": ["full_attention"] * 2, "num_local_experts": 0,
            "shared_intermediate_size": 48, "mamba_n_heads": 4, "mamba_d_head": 16,
        }),
    ],
)  # fmt: skip
def test_members_of_other_kinds_that_are_causal_decoders_load(model_type, options, tmp_path):
    model = made(model_type, options)
    settings = saved(tmp_path, model)
    assert not list(text_problems(settings, "\n", [], 8))
    agrees(load(settings), model)


# -- multimodal models, for text --------------------------------------------------------------------

MULTIMODAL: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"sliding_window": 64},
        "vision_config": VISION, "mm_tokens_per_image": 1, "image_token_index": V - 1,
    },
    "llava": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION | {"model_type": "clip_vision_model", "attention_dropout": 0.1},
        "image_token_index": V - 1,
    },
    "qwen2_vl": {
        "text_config": TEXT | {"rope_parameters": MROPE, "attention_dropout": 0.1},
        "vision_config": {
            "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4,
        },
        "image_token_id": V - 1, "video_token_id": V - 2, "vision_start_token_id": V - 3,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral"}, "image_token_index": V - 1,
    },
    "llama4": {
        "text_config": TEXT | {
            "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 48,
        },
        "vision_config": VISION | {
            "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16,
        },
    },
    "idefics3": {
        "text_config": TEXT | {"model_type": "llama"},
        "vision_config": VISION, "image_token_id": V - 1, "scale_factor": 2,
    },
    # More embeddings than logits.
    "mllama": {
        "text_config": TEXT | {"cross_attention_layers": [1]},
        "vision_config": VISION | {
            "vision_output_dim": 32, "num_global_layers": 1, "attention_heads": 2,
            "intermediate_layers_indices": [0], "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
    },
}  # fmt: skip


def agrees(lm: LanguageModel, model: Any) -> None:
    """``lm`` gives what the model gives of text alone; batched, padded, cached and packed too."""
    rows = [[3, 4, 5, 6, 2], [7, 8, 9]]
    whole_NTV = lm.whole_logits(rows)
    for row, ids in enumerate(rows):
        torch.testing.assert_close(whole_NTV[row, : len(ids)], logits(model, ids))
    draw_adapter(lm.model)
    prompt = lm.prefill(rows)
    expected = torch.stack([logits(lm.model, ids)[-1] for ids in rows])
    torch.testing.assert_close(prompt.last_logits_NV, expected, atol=1e-4, rtol=1e-4)
    rule = StringRule(0, 0, 3)
    strings = as_trajectories([(5, 9, 2), (3,)])
    score = []
    for lm.packed_rewards in ("auto", "never"):
        score.append(score_prefixes(lm, GivenStrings([rows[0]], [(4, 0)], strings, rule)))
    torch.testing.assert_close(*score, atol=1e-3, rtol=0)


@pytest.mark.parametrize("model_type", MULTIMODAL)
def test_a_multimodal_model_loads_for_text(model_type, tmp_path):
    model = made(model_type, MULTIMODAL[model_type], AutoModelForImageTextToText)
    settings = saved(tmp_path / "model", model)
    assert not list(settings.problems())
    (problem,) = text_problems(settings, "\n", [("it", "a" * 60, "")], 8)
    assert f"the model's context of {N_POSITIONS}" in problem.what
    lm = load(settings)
    assert lm.context_length == N_POSITIONS and lm.vocab_size == V
    agrees(lm, model)
    lm.save_adapter(tmp_path / "adapter")
    base = lm.model.get_base_model()
    # Whoever reads the adapter needs no more than the model and PEFT.
    plain = type(base).from_pretrained(tmp_path / "model")
    read = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(read, [1, 2, 3]), logits(lm.model, [1, 2, 3]))


@pytest.mark.parametrize("targets", [None, ("q_proj", "fc1", "o_proj")])
@pytest.mark.parametrize("output_layer", [False, True])
@pytest.mark.parametrize("model_type", ["gemma3", "llava", "idefics3"])
def test_the_adapter_is_in_the_language_model_only(model_type, targets, output_layer):
    model = made(model_type, MULTIMODAL[model_type], AutoModelForImageTextToText)
    options = LoraSettings(rank=2, alpha=2, targets=targets, output_layer=output_layer)
    layers = adapted(with_adapter(model, options, 0))
    part = "model.text_model." if model_type == "idefics3" else "model.language_model."
    outside = {name for name in layers if not name.startswith(part)}
    assert outside == ({"lm_head"} if output_layer else set())
    assert len(layers) == 2 * (7 if targets is None else 2) + output_layer


def test_dropout_is_switched_off_in_every_part():
    text, vision = {"attention_dropout": 0.1, "hidden_dropout": 0.2}, {"attention_dropout": 0.3}
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision)
    config = without_dropout(config)
    assert config.text_config.attention_dropout == config.vision_config.attention_dropout == 0.0


# -- mixtures of experts ----------------------------------------------------------------------------

_FOUR = {"num_local_experts": 4, "num_experts_per_tok": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": _FOUR,
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "gpt_oss": _FOUR,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": _FOUR,
}


@pytest.mark.parametrize("model_type", MIXTURES)
def test_an_adapted_output_layer_leaves_the_experts_theirs(model_type, tmp_path):
    options, ids = TEXT | MIXTURES[model_type], [3, 4, 5, 6]
    plain = adapted(with_adapter(made(model_type, options), LoraSettings(rank=2, alpha=2), 0))
    has_experts = model_type in ("mixtral", "qwen3_moe", "olmoe")
    assert any("experts" in name for name in plain) == has_experts
    settings = LoraSettings(rank=2, alpha=2, output_layer=True)
    headed = with_adapter(made(model_type, options), settings, 0).eval()
    assert adapted(headed) == plain | {"lm_head"}
    base = logits(made(model_type, options), ids)
    torch.testing.assert_close(logits(headed, ids), base)
    draw_adapter(headed)
    changed = logits(headed, ids)
    lm = LanguageModel(headed, None)
    with merged(headed):
        torch.testing.assert_close(logits(headed, ids), changed, atol=1e-4, rtol=1e-4)
    lm.add_answer_adapter(settings, 1)
    with lm.reference():
        torch.testing.assert_close(logits(headed, ids), base)
    lm.save_adapter(tmp_path)
    read = PeftModel.from_pretrained(made(model_type, options), str(tmp_path)).eval()
    assert adapted(headed) == plain | {"lm_head"}
    torch.testing.assert_close(logits(read, ids), changed)


@pytest.mark.parametrize("target", ["gate_up_proj", "mlp.experts"])
def test_targets_that_name_fused_experts_are_explained(target, tmp_path):
    settings = saved(tmp_path, made("gpt_oss", TEXT | MIXTURES["gpt_oss"]))
    settings = replace(settings, lora=LoraSettings(targets=("q_proj", target)))
    (problem,) = text_problems(settings, "\n", [], 8)
    assert problem.where == "lm.lora.targets[1]" and "fused experts" in problem.what
    assert "q_proj" in problem.allowed and "lm.lora.targets=null" in problem.fix


def in_mxfp4(folder: Path) -> dict[str, Tensor]:
    """Put random MXFP4 numbers in the experts' place; the values that they stand for."""
    generator = torch.Generator().manual_seed(0)
    e2m1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    e2m1 = torch.cat([e2m1, -e2m1])
    tensors, expected = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        code = torch.randint(0, 16, (*shape, 32), generator=generator)
        scale = torch.randint(120, 126, shape, generator=generator)
        value = e2m1[code] * 2.0 ** (scale - 127)[..., None]
        expected[name] = value.reshape(experts, outputs, inputs).transpose(1, 2)
        # Two numbers a byte, the first in its lower half; one scale for 32 numbers.
        tensors[f"{name}_blocks"] = (code[..., 0::2] | (code[..., 1::2] << 4)).to(torch.uint8)
        tensors[f"{name}_scales"] = scale.to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    layer = "model.layers.*"
    kept = [f"{layer}.self_attn", f"{layer}.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    (folder / "config.json").write_text(json.dumps(config))
    return expected


def test_experts_in_mxfp4_are_read_in_the_models_dtype(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    settings = saved(tmp_path, made("gpt_oss", TEXT | MIXTURES["gpt_oss"] | sizes))
    expected = in_mxfp4(tmp_path)
    assert not list(settings.problems()) and not list(text_problems(settings, "\n", [], 8))
    parameters = dict(load(settings).model.get_base_model().named_parameters())
    assert len(expected) == 4
    for name, values in expected.items():
        torch.testing.assert_close(parameters[name].data, values)
    with pytest.raises(UserError, match=r"\(mxfp4\)"):
        list(text_problems(replace(settings, quantization="4bit"), "\n", [], 8))
