"""GGUF files of random Llamas, made here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants

WIDTH, HIDDEN, HEADS, LAYERS = 64, 96, 2, 2
_NORMAL, _CONTROL = 1, 3
# transformers adds the last one to byte-level tokenizers of files that lack it.
SPECIAL = ("<|start|>", "<|end|>", "<|tool|>", "<|endoftext|>")
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"


def write_gguf(
    file: Path,
    *,
    architecture: str = "llama",
    special: Sequence[str] = SPECIAL,
    quantized: bool = True,
    **more: Any,
) -> None:
    """A file with byte-level tokens and special ones, of which two have a role.

    Args:
        file: to be written.
        architecture: what the file says that it is.
        special: tokens that are no text; the first begins a text, the second ends it.
        quantized: matrices are Q4_1.
        more: numbers and texts of further metadata; dots as ``__``. ``rope_freqs=True`` is a tensor,
            ``lacks`` the name of one that is left out.
    """
    writer = GGUFWriter(file, architecture)
    tokens = [*special, *_bytes(), "Ġ7", "in"]
    _add_metadata(writer, tokens, len(special))
    lacks = more.pop("lacks", None)
    has_factors = more.pop("rope_freqs", False)
    for key, value in more.items():
        name = key.replace("__", ".")
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(f"{architecture}.{name}", value)
    draw = np.random.default_rng(0)
    for name, shape in _shapes(len(tokens)).items():
        if name == lacks:
            continue
        values = draw.normal(0.0 if len(shape) > 1 else 1.0, 0.2, shape).astype(np.float32)
        if quantized and len(shape) > 1:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    if has_factors:
        writer.add_tensor("rope_freqs.weight", np.full(WIDTH // HEADS // 2, 8.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: GGUFWriter, tokens: Sequence[str], n_special: int) -> None:
    """Of the model and its tokenizer."""
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL] * n_special + [_NORMAL] * (len(tokens) - n_special))
    writer.add_token_merges(["Ġ 7", "i n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)


def _shapes(n_tokens: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_tokens, WIDTH)}
    for layer in range(LAYERS):
        own = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH // HEADS, WIDTH),
            "attn_v": (WIDTH // HEADS, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in own.items()}
    return shapes | {"output_norm.weight": (WIDTH,)}


def _bytes() -> list[str]:
    """Every byte as byte-level tokenizers spell it: printable ones as they are, others from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)
    ]
