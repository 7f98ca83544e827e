"""An adapter as part of the weights while forwards run: one product a layer, not three."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Within it the active adapter is added to the weights of its layers; for no gradients.

    Only where that pays: sums of large weights would fill memory as a second model, and there a small
    adapter takes a small share of the time anyway.

    Logits differ by rounding only (fp32). Weights of lower precision stay apart from their adapter:
    rounding the sum would make another policy. So does an adapter that is switched off. Afterwards
    every weight is the very tensor that it was, so that nothing is rounded twice.

    Args:
        model: of transformers, with or without a PEFT adapter.
    """
    with torch.no_grad(), _added(model, _pays):
        yield


@contextlib.contextmanager
def folded(model: Any, tokens: int) -> Iterator[None]:
    """As :func:`merged`, with gradients, for the layers where that saves arithmetic.

    Weights W + s B A are made once and used for all tokens; the gradients of A and B come from W's.
    A layer of n inputs and m outputs then multiplies n m numbers a token more (the gradient of W) and
    3 r n m once, in place of 3 r (n + m) a token: less where the rank is more than about a third of
    n m / (n + m), as in small models. The backward pass may run after the context has ended.

    Args:
        model: of transformers, with or without a PEFT adapter.
        tokens: that the forwards within it will read.
    """
    with _added(model, lambda layer: _saves(layer, tokens)):
        yield


# Numbers of a weight below which three calls cost more than what they compute.
_SMALL = 1 << 18


def _pays(layer: Any) -> bool:
    """Whether a layer is small, or its adapter makes a quarter of its products or more."""
    inputs, outputs = layer.in_features, layer.out_features
    weights = inputs * outputs
    return weights <= _SMALL or 4 * _rank(layer) * (inputs + outputs) >= weights


def _rank(layer: Any) -> int:
    return sum(layer.r[name] for name in _active(layer))


def _saves(layer: Any, tokens: int) -> bool:
    """Whether a layer multiplies fewer numbers folded than apart."""
    rank = _rank(layer)
    inputs, outputs = layer.in_features, layer.out_features
    once = 3 * rank * inputs * outputs
    return once + tokens * inputs * outputs < tokens * 3 * rank * (inputs + outputs)


@contextlib.contextmanager
def _added(model: Any, wanted: Callable[[Any], bool]) -> Iterator[None]:
    layers = [layer for layer in _mergeable(model) if wanted(layer)]
    try:
        for layer in layers:
            base = layer.get_base_layer()
            weight: Tensor = base.weight
            for name in _active(layer):
                weight = weight + layer.get_delta_weight(name)
            # In front of the parameter, which stays where it is: it may be the embeddings' as well.
            base.__dict__["weight"] = weight
            layer.merged_adapters.extend(_active(layer))
        yield
    finally:
        for layer in layers:
            layer.get_base_layer().__dict__.pop("weight", None)
            layer.merged_adapters.clear()


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _mergeable(model: Any) -> Iterator[Any]:
    # Weights that ranks have shared out are whole within a forward only.
    if not hasattr(model, "peft_config") or isinstance(model, FSDPModule):
        return
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
            weight = getattr(layer.get_base_layer(), "weight", None)
            if weight is not None and weight.dtype == torch.float32 and _active(layer):
                yield layer
