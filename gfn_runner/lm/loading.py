"""Loading of a language model, its tokenizer and its adapter from a folder or hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gfn_runner.lm.adapters import with_adapter, with_saved_adapter
from gfn_runner.lm.architecture import causal_auto_class
from gfn_runner.lm.chat import ChatTemplate
from gfn_runner.lm.model_config import MODELS, LMSettings
from gfn_runner.lm.packing import check_cache
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.pretrained import Source, dequantized, resolve


def load(options: LMSettings, *, adapter: bool | Path = True, seed: int = 0) -> LanguageModel:
    """Load a model and its tokenizer, set every dropout to 0 and add an adapter.

    Args:
        adapter: ``True`` adds a new LoRA adapter: its B is 0, so the policy starts as the base model.
            ``False`` adds none; the path of a saved PEFT adapter loads it, frozen.
        seed: seed for initializing the adapter's A.

    Raises:
        UserError: if the model cannot be found or read, or is not a causal language model.
    """
    source = lm_source(options)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    config, tokenizer = source.config(), source.tokenizer()
    extra = _four_bit(dtype) if options.quantization == "4bit" else dequantized(config)
    model = source.model(causal_auto_class(config), config, dtype=getattr(torch, dtype), **extra)
    if options.quantization == "none":
        model = model.to(device)
    model.eval()
    if isinstance(adapter, Path):
        model = with_saved_adapter(model, adapter)
    elif adapter:
        model = with_adapter(model, options.lora, seed)
    lm = LanguageModel(
        model,
        tokenizer,
        packed_rewards=options.packed_rewards,
        max_tokens_per_forward=options.max_tokens_per_forward,
        recompute_above=options.recompute_above,
        chat=ChatTemplate.read(options.chat_template),
    )
    check_cache(lm, options.name)
    return lm


def lm_source(options: LMSettings) -> Source:
    """Return the source that the language model is loaded from."""
    return resolve(options.name, "lm.name", MODELS, options.gguf_file)


def _four_bit(dtype: str) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
