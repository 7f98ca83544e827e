"""GGUF files: what of one transformers can read, and what is refused before weights load."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.lm.load_errors import explained

KEY = "lm.gguf_file"


def refuse_unreadable(source: str, name: str) -> None:
    """Read a GGUF file's header and refuse what would be read wrongly or not at all.

    Args:
        source: the model's folder or hub id.
        name: of the file there.

    Raises:
        UserError: if the file is not to be had, is no GGUF file or cut off, or if it scales RoPE, which
            transformers would silently leave out.
    """
    from gguf import GGUFReader
    from transformers.utils import cached_file

    with explained(KEY, f"cannot get {name!r} of {source}", "a GGUF file of lm.name"):
        file = Path(str(cached_file(source, name)))
    what = f"{file} is no GGUF file, is cut off or damaged"
    with explained(KEY, what, "a whole GGUF file", "download it again"):
        reader = GGUFReader(file)
    scaled = _rope_scaling(reader)
    if scaled:
        raise UserError.one(
            KEY,
            f"{file.name} scales RoPE ({scaled}), which transformers does not read from GGUF: its "
            "log-probabilities would be wrong",
            "a GGUF file without RoPE scaling",
            "the model's folder in Hugging Face format, without lm.gguf_file",
        )


def dequantizing_options(gguf_file: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that make the weights tensors of the model's dtype."""
    import transformers

    # Newer versions may keep the file's blocks, which cannot be trained through.
    kind = getattr(transformers, "GgufConfig", None)
    if kind is None:
        return {}
    return {"quantization_config": kind(gguf_file=gguf_file, dequantize=True)}


def no_progress_bar() -> contextlib.AbstractContextManager[Any]:
    """Without transformers' progress bar of a GGUF file, which no setting switches off."""
    return contextlib.redirect_stderr(io.StringIO())


def without_quantization(model: Any) -> None:
    """Let a model whose weights are dequantized no longer call itself quantized: it can be saved then."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False


def _rope_scaling(reader: Any) -> str:
    """How a file scales RoPE; empty if it does not."""
    for key, field in reader.fields.items():
        plain = "none" if key.endswith(".rope.scaling.type") else 1.0
        if key.endswith((".rope.scaling.type", ".rope.scaling.factor", ".rope.scale_linear")):
            value = field.contents()
            if value != plain:
                return f"{key} = {value}"
    factors = [t.name for t in reader.tensors if t.name.startswith(("rope_freqs", "rope_factors"))]
    return factors[0] if factors else ""
