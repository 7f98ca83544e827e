"""An adapter as part of the weights while many small forwards run: one product a layer, not three."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Within it the active adapter is added to the weights of its layers; for no gradients.

    Logits differ by rounding only (fp32). Weights of lower precision stay apart from their adapter:
    rounding the sum would make another policy. So does an adapter that is switched off. Behind it
    every weight is the very tensor that it was, so that nothing is rounded twice.

    Args:
        model: of transformers, with or without a PEFT adapter.
    """
    layers = list(_mergeable(model))
    kept: list[tuple[Any, nn.Parameter]] = []
    try:
        for layer in layers:
            base = layer.get_base_layer()
            kept.append((layer, base.weight))
            # A parameter of its own: the output layer's may be the embeddings' as well.
            base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
            layer.merge()
        yield
    finally:
        for layer, weight in kept:
            layer.get_base_layer().weight = weight
            layer.merged_adapters.clear()


def _mergeable(model: Any) -> Iterator[Any]:
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
            weight = getattr(layer.get_base_layer(), "weight", None)
            if weight is not None and weight.dtype == torch.float32:
                yield layer
