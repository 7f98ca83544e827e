"""A language model, its tokenizer and its adapter from a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gfn_runner.errors import UserError
from gfn_runner.lm import gguf
from gfn_runner.lm.adapters import with_adapter, with_saved_adapter
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.settings import LMSettings, model_folder


def load(options: LMSettings, *, adapter: bool | Path = True, seed: int = 0) -> LanguageModel:
    """Load model and tokenizer, zero every dropout, add an adapter.

    Args:
        options: which model.
        adapter: ``True`` adds a fresh LoRA: its B is 0, so the policy starts as the base model.
            ``False`` adds none; a folder in PEFT format is read, and not to be trained further.
        seed: of the adapter's A.

    Raises:
        UserError: if the model cannot be found or read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(options.name)
    # Absolute: "./gpt2" must not become the hub id "gpt2".
    source = options.name if folder is None else str(folder.absolute())
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    try:
        named = gguf.loading_options(options.gguf_file)
        config = without_dropout(AutoConfig.from_pretrained(source, **named))
        tokenizer = AutoTokenizer.from_pretrained(source, **named)
        extra = gguf.model_options(options.gguf_file)
        if options.quantization == "4bit":
            extra |= _four_bit(dtype)
        with gguf.no_bar(options.gguf_file):
            # With output_loading_info it gives a pair, of which its annotation says nothing.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                **extra,
            )
        model, found = loaded
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError.one(
            "lm.name",
            f"cannot load {options.name!r}: {first_line}",
            "embedded, a folder in Hugging Face format, or a hub id that can be reached",
        ) from error
    if options.gguf_file is not None:
        gguf.refuse_missing(options.gguf_file, found["missing_keys"])
        gguf.without_quantization(model)
    if options.quantization == "none":
        model = model.to(device)
    model.eval()
    if isinstance(adapter, Path):
        model = with_saved_adapter(model, adapter)
    elif adapter:
        model = with_adapter(model, options.lora, seed)
    return LanguageModel(
        model,
        tokenizer,
        packed_rewards=options.packed_rewards,
        max_tokens_per_forward=options.max_tokens_per_forward,
        recompute_above=options.recompute_above,
    )


def without_dropout(config: Any) -> Any:
    """Set every dropout probability of a model's config to 0."""
    for name, value in vars(config).items():
        if ("drop" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _four_bit(dtype: str) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": quantization, "device_map": {"": torch.cuda.current_device()}}
