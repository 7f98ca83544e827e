"""GGUF files: loading by transformers, and rejecting unsupported files before weights are loaded."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from gfn_runner.errors import UserError
from gfn_runner.lm.load_errors import explained

KEY = "lm.gguf_file"


def refuse_unreadable(source: str, name: str) -> None:
    """Read a GGUF file's header and reject a file that transformers would misread or cannot read.

    Args:
        source: the model's folder or hub id.
        name: name of the file there.

    Raises:
        UserError: if the file is unavailable, truncated or not a GGUF file, or if it scales RoPE, which
            transformers would silently ignore.
    """
    from gguf import GGUFReader
    from transformers.utils import cached_file

    with explained(KEY, f"cannot get {name!r} from {source}", "a GGUF file of lm.name"):
        file = Path(str(cached_file(source, name)))
    what = f"{file} is not a GGUF file, or is truncated or damaged"
    with explained(KEY, what, "a complete GGUF file", "download it again"):
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
    """Return arguments for ``from_pretrained`` that dequantize the weights to the model's dtype."""
    import transformers

    # Newer versions may keep the quantized blocks, through which gradients cannot flow.
    kind = getattr(transformers, "GgufConfig", None)
    if kind is None:
        return {}
    return {"quantization_config": kind(gguf_file=gguf_file, dequantize=True)}


def no_progress_bar() -> contextlib.AbstractContextManager[Any]:
    """Return a context manager that hides transformers' GGUF progress bar, which no setting disables."""
    return contextlib.redirect_stderr(io.StringIO())


def without_quantization(model: Any) -> None:
    """Remove the quantization attributes of a model with dequantized weights, so that it can be saved."""
    for owner, name in (
        (model.config, "quantization_config"),
        (model, "hf_quantizer"),
        (model, "quantization_method"),
    ):
        if hasattr(owner, name):
            delattr(owner, name)
    model.is_quantized = False


def _rope_scaling(reader: Any) -> str:
    """Return how a file scales RoPE; empty if it does not."""
    for key, field in reader.fields.items():
        plain = "none" if key.endswith(".rope.scaling.type") else 1.0
        if key.endswith((".rope.scaling.type", ".rope.scaling.factor", ".rope.scale_linear")):
            value = field.contents()
            if value != plain:
                return f"{key} = {value}"
    factors = [t.name for t in reader.tensors if t.name.startswith(("rope_freqs", "rope_factors"))]
    return factors[0] if factors else ""
