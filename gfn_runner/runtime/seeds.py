"""Seeds derived from names and numbers, so that no random state has to be saved."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts)).encode("utf-8")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def rng_for(*parts: object) -> random.Random:
    """A Python generator of its own for one purpose."""
    return random.Random(derived_seed(*parts))


def torch_generator_for(device: torch.device | str, *parts: object) -> torch.Generator:
    """A torch generator of its own for one purpose, on ``device``."""
    # Not at the top: tasks draw their data without torch, before a config is found to be right.
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derived_seed(*parts))
    return generator
