"""Whether a loaded model gives what its kind promises: cached, left-padded forwards equal plain ones."""

from __future__ import annotations

import torch
from torch import Tensor

from gfn_runner.errors import UserError
from gfn_runner.lm.architecture import CAUSAL
from gfn_runner.lm.policy import LanguageModel

_TEXT = "One, two, three: 4 5 6 7"
# Mean total variation between two distributions of the next token. Rounding makes 1e-6 in float32
# and up to some hundredths in 16 or 4 bits; other positions or a missing mask make tenths.
_FLOAT32, _LOWER = 0.02, 0.25


def check_forwards(lm: LanguageModel, name: str) -> None:
    """Compare a few short forwards, of the model as it is switched now.

    Some classes of transformers take no account of padding, of position ids or of the cache, or let a
    token see later ones; no config tells so.

    Raises:
        UserError: at ``lm.name``, if they differ or cannot be run.
    """
    ids = [token for token in lm.encode_prompt(_TEXT) if token < lm.vocab_size]
    ids = (ids * 8 or [0] * 8)[:8]
    if (lm.context_length or 8) < 8:
        return
    try:
        apart = _apart(lm, ids)
    except (AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        what = f"it cannot be run with left padding and a cache: {type(error).__name__}: {error}"
    else:
        dtype = next(lm.model.parameters()).dtype
        quantized = getattr(lm.model.config, "quantization_config", None) is not None
        limit = _FLOAT32 if dtype == torch.float32 and not quantized else _LOWER
        if not apart > limit:  # NaN is said where it is met, with the condition
            return
        what = (
            "with left padding and a cache its next-token distributions are others than without (mean "
            f"total variation {apart:.2f}): it is not causal, or takes no position ids"
        )
    kind = lm.model.config.model_type
    raise UserError.one("lm.name", f"{name!r} ({kind}) is not supported: {what}", CAUSAL)


@torch.no_grad()
def _apart(lm: LanguageModel, ids: list[int]) -> float:
    """Mean total variation between what a row gets alone and in a padded batch from a cache."""
    rows = [(ids[:4], ids[4:7]), (ids[5:7], ids[:3])]
    expected_NQV = torch.stack([_alone(lm, [*prompt, *rest], len(rest)) for prompt, rest in rows])
    prompt = lm.prefill([prompt for prompt, _ in rows])
    token_NQ = torch.tensor([rest for _, rest in rows], device=lm.device)
    mask_NK = torch.cat([prompt.mask_NP, torch.ones_like(token_NQ, dtype=torch.bool)], dim=1)
    position_NQ = prompt.length_N[:, None] + torch.arange(token_NQ.shape[1], device=lm.device)
    prompt = prompt.select(torch.arange(len(rows), device=lm.device))
    found_NQV = lm.extend(prompt, token_NQ, mask_NK, position_NQ).float().softmax(-1)
    return float((found_NQV - expected_NQV).abs().sum(-1).mean() / 2)


def _alone(lm: LanguageModel, ids: list[int], n_last: int) -> Tensor:
    """Next-token distributions after the last tokens, each of a forward that ends there. Shape (Q, V).

    No later token can be seen then, and positions and mask are the model's own.
    """
    ends = range(len(ids) - n_last + 1, len(ids) + 1)
    rows = (torch.tensor([ids[:end]], device=lm.device) for end in ends)
    return torch.stack([lm.model(input_ids=row).logits[0, -1] for row in rows]).float().softmax(-1)
