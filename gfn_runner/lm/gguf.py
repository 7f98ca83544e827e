"""GGUF files: what of one transformers can read, and what is refused before weights load."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
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
        UserError: if the file is not to be had, is no GGUF file or cut off, if transformers knows no such
            architecture, or if the file scales RoPE, which transformers would silently leave out.
    """
    from gguf import GGUFReader
    from transformers.utils import cached_file

    with explained(KEY, f"cannot get {name!r} of {source}", "a GGUF file of lm.name"):
        file = Path(str(cached_file(source, name)))
    what = f"{file} is no GGUF file, is cut off or damaged"
    with explained(KEY, what, "a whole GGUF file", "download it again"):
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
    known = readable_architectures()
    if _plain(architecture) not in map(_plain, known):
        raise UserError.one(
            KEY,
            f"{file.name} is of architecture {architecture!r}, which transformers cannot read from GGUF",
            ", ".join(known),
            "the model's folder in Hugging Face format, without lm.gguf_file",
        )
    scaled = _rope_scaling(reader)
    # Of this architecture transformers reads the scaling.
    if scaled and _plain(architecture) != "gptoss":
        raise UserError.one(
            KEY,
            f"{file.name} scales RoPE ({scaled}), which transformers does not read from GGUF: its "
            "log-probabilities would be wrong",
            "a GGUF file without RoPE scaling",
            "the model's folder in Hugging Face format, without lm.gguf_file",
        )


def refuse_missing(name: str, weights: Collection[str]) -> None:
    """Refuse a file without some of the model's weights: transformers would draw them at random.

    Raises:
        UserError: if there are such.
    """
    if weights:
        raise UserError.one(
            KEY,
            f"{name} lacks {len(weights)} of the model's weights, e.g. {min(weights)}",
            "a whole GGUF file of a model that transformers reads",
        )


def readable_architectures() -> Sequence[str]:
    """Architectures of causal language models that transformers reads from GGUF, as it calls them."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = set(reading.GGUF_SUPPORTED_ARCHITECTURES)
    try:
        # A second reader, in newer versions of transformers.
        from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

        names |= set(GGUF_CONFIG_ARCHS)
    except ImportError:
        pass
    # The library's list holds sections of a file, too.
    models = {_plain(name) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    return sorted(
        name for name in names if _plain(name) in models or f"{_plain(name)}text" in models
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


def _plain(architecture: str) -> str:
    """llama.cpp's spelling and transformers' are the same but for marks: qwen2moe, qwen2_moe."""
    return architecture.lower().replace("_", "").replace("-", "")
