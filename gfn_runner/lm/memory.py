"""What memory the drawing of a string takes; measures nothing."""

from __future__ import annotations

from typing import Any

# Logits of this token and the next, masked and scaled copies in fp32; their cumulated sums in fp64.
_BYTES_PER_LOGIT = 24


def row_bytes(model: Any, vocab_size: int, tokens: int) -> int:
    """Bytes of one string while it is drawn: its logits, and keys and values of all its tokens.

    The latter count twice: rows that have ended are dropped by copying the others.

    Args:
        model: of transformers.
        vocab_size: logits of a token.
        tokens: of the prompt and of the longest string.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached = 2 * config.num_hidden_layers * kept * width * model.dtype.itemsize
    return _BYTES_PER_LOGIT * vocab_size + 2 * tokens * cached
