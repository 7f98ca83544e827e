"""Random-weight language models of many architectures, and a tokenizer of single characters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.adapters import with_adapter
from gfn_runner.lm.model_config import LoraSettings
from gfn_runner.lm.model_folders import EMBEDDED_FOLDER
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule

CHARACTERS = ".,=+- 0123456789abcdefghij?:QA"
N_POSITIONS = 64

# Small in every dimension, and with weights large enough that no distribution is flat.
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": N_POSITIONS}
_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": N_POSITIONS,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 4},
    "gpt_neox": _COMMON,
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": N_POSITIONS,
        "word_embed_proj_dim": 32,
        "init_std": 0.3,
    },
    "llama": _COMMON | {"num_key_value_heads": 2},
    "qwen2": _COMMON | {"num_key_value_heads": 2},
    "gemma": _COMMON | {"num_key_value_heads": 1, "head_dim": 8},
    "phi": _COMMON,
}

# A bias by distance, which some find from the mask: packed scoring is wrong for them.
ALIBI: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": N_POSITIONS},
    "falcon": _COMMON | {"alibi": True, "new_decoder_architecture": False},
}

# With attention windows or chunks of 16 tokens, in every layer or in every other one.
WINDOW = 16
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 8}
_SLIDING = _GROUPED | {"sliding_window": WINDOW}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_MIXED = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
WINDOWED: dict[str, dict[str, Any]] = {
    "mistral": _SLIDING,
    "gemma2": _SLIDING | _MIXED | {"query_pre_attn_scalar": 8},
    "gemma3_text": _SLIDING | _MIXED | {"query_pre_attn_scalar": 8},
    "qwen2": _SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "phi3": _SLIDING,
    "gpt_oss": _SLIDING | _MIXED | _EXPERTS,
    "llama4_text": _GROUPED
    | _EXPERTS
    | {"attention_chunk_size": WINDOW, "intermediate_size_mlp": 48, "num_experts_per_tok": 1}
    | {"layer_types": ["chunked_attention", "full_attention"], "interleave_moe_layer_step": 2},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    | {"max_position_embeddings": N_POSITIONS, "window_size": WINDOW}
    | {"attention_types": [[["global", "local"], 1]]},
    "cohere2": _SLIDING | _MIXED | {"logit_scale": 1.0},
    "olmo3": _SLIDING | _MIXED,
}


def character_tokenizer(characters: str = CHARACTERS, **special: str) -> PreTrainedTokenizerFast:
    """Every character is a token, in the order given; the special tokens come after them."""
    names = list(dict.fromkeys(special.values()))
    entries = [*characters, *names]
    tokenizer = Tokenizer(
        models.WordLevel({text: index for index, text in enumerate(entries)}, unk_token=entries[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def random_model(architecture: str, vocab_size: int, seed: int = 0, **options: Any) -> Any:
    """A model of random weights; the same for the same arguments."""
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    # Learned positions and tied embeddings are drawn at this scale too.
    settings = {"initializer_range": 0.3} | ARCHITECTURES.get(architecture, {}) | special | options
    config = AutoConfig.for_model(architecture, vocab_size=vocab_size, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Biases begin at 0 and norms at 1: an error in them would not show.
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                elif "lm_head" in name or "embed_out" in name:
                    parameter.mul_(2.0)
    return model.eval()


def save_first_layer(folder: Path) -> None:
    """The embedded model without all layers but its first: it runs in a fraction of the time."""
    shutil.copytree(EMBEDDED_FOLDER, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    weights = load_file(folder / "model.safetensors")
    kept = {n: w for n, w in weights.items() if ".layers." not in n or ".layers.0." in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def save_model_that_ignores_padding(folder: Path) -> None:
    """A model folder that only shows that it cannot be used when the model runs."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    config = AutoConfig.for_model(
        "roberta", vocab_size=len(tokenizer), max_position_embeddings=514, hidden_size=32,
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.5,
        is_decoder=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_lm(
    architecture: str = "llama",
    characters: str = CHARACTERS,
    *,
    adapter: str = "none",
    seed: int = 0,
    rank: int = 4,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> LanguageModel:
    """A random language model over ``characters``.

    Args:
        architecture: model type of transformers.
        characters: its tokens.
        adapter: ``none``, ``fresh`` (B = 0: the policy is the base model) or ``random``.
        seed: of the weights.
        rank: of the adapter.
        config: entries of the model's config beside those of ``ARCHITECTURES``.
        options: of :class:`LanguageModel`.
    """
    tokenizer = character_tokenizer(characters)
    model = random_model(architecture, len(tokenizer), seed, **(config or {}))
    if adapter != "none":
        model = with_adapter(model, LoraSettings(rank=rank, alpha=rank), seed)
    if adapter == "random":
        draw_adapter(model, seed + 1)
    return LanguageModel(model, tokenizer, **options)


@torch.no_grad()
def draw_adapter(model: Any, seed: int = 1) -> None:
    """Give a fresh adapter a random B, so that the policy is not the base model."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def all_strings(vocab_size: int, rule: StringRule) -> list[tuple[int, ...]]:
    """Every string that the rule allows, without its terminator."""
    allowed_V = rule.allowed_V
    letters = [
        token
        for token in range(vocab_size)
        if token != rule.terminator and (allowed_V is None or allowed_V[token])
    ]
    return list(_products(letters, rule.min_len, rule.max_len))


def _products(letters: Sequence[int], low: int, high: int) -> Iterator[tuple[int, ...]]:
    for length in range(low, high + 1):
        yield from product(letters, repeat=length)


def as_trajectories(
    strings: Sequence[Sequence[int]], conditions: Sequence[int] = ()
) -> Trajectories:
    """Strings of actions only; all of condition 0 unless told otherwise."""
    actions = [[True] * len(string) for string in strings]
    return Trajectories.from_rows(strings, actions, conditions or [0] * len(strings))


def signed_sum(text: str) -> int:
    """The value of a chain such as ``2 - 8 + 1``, read in another way than the product reads it."""
    return sum(map(int, re.findall(r"[+-]?\d+", text.replace(" ", ""))))


def at_end(values_BS: torch.Tensor, trajectories: Trajectories) -> torch.Tensor:
    """Values at the terminal states. Shape (B,)."""
    return values_BS.gather(1, trajectories.length_B[:, None])[:, 0]
