"""Seeds derived from names and numbers, so that no RNG state needs to be saved."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed derived from printable parts; the same on every machine and in every process."""
    text = "\x1f".join(map(str, parts)).encode("utf-8")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def rng_for(*parts: object) -> random.Random:
    """Return a separate Python random generator for one purpose."""
    return random.Random(derived_seed(*parts))


def torch_generator_for(device: torch.device | str, *parts: object) -> torch.Generator:
    """Return a separate torch generator for one purpose, on ``device``."""
    # Not at the top: tasks draw their data without torch, before the config has been validated.
    import torch

    generator = torch.Generator(device=device)
    generator.manual_seed(derived_seed(*parts))
    return generator
