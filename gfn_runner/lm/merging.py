"""Adapters merged into the weights during forward passes: one matrix product per layer, not three."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule


@contextlib.contextmanager
def merged(model: Any) -> Iterator[None]:
    """Merge the active adapter into its layers' weights inside the context, without gradients.

    Layers are merged only where this pays off: merged copies of large weights would take as much memory as
    a second model, and there a small adapter takes a small share of the time anyway.

    Logits differ only by rounding (fp32). Weights of lower precision are not merged, because rounding
    the sum would change the policy; nor are disabled adapters. On exit every weight is the original
    tensor again, so that nothing is rounded twice.

    Args:
        model: transformers model, with or without a PEFT adapter.
    """
    with torch.no_grad(), _added(model, _pays):
        yield


@contextlib.contextmanager
def folded(model: Any, tokens: int) -> Iterator[None]:
    """Merge like :func:`merged`, but with gradients, for the layers where this saves arithmetic.

    W + s B A is computed once and used for all tokens; the gradients of A and B come from that of W.
    A layer with n inputs and m outputs then takes n m more multiplications per token (the gradient of W)
    and 3 r n m once, instead of 3 r (n + m) per token: fewer if the rank exceeds about a third of
    n m / (n + m), as in small models. The backward pass may run after the context has exited.

    Args:
        model: transformers model, with or without a PEFT adapter.
        tokens: number of tokens that the forward passes inside the context will read.
    """
    with _added(model, lambda layer: _saves(layer, tokens)):
        yield


# Weight size up to which the overhead of three calls exceeds the cost of their arithmetic.
_SMALL = 1 << 18


def _pays(layer: Any) -> bool:
    """Return whether a layer is small, or its adapter takes at least a quarter of its multiplications."""
    inputs, outputs = layer.in_features, layer.out_features
    weights = inputs * outputs
    return weights <= _SMALL or 4 * _rank(layer) * (inputs + outputs) >= weights


def _rank(layer: Any) -> int:
    return sum(layer.r[name] for name in _active(layer))


def _saves(layer: Any, tokens: int) -> bool:
    """Return whether a layer takes fewer multiplications folded than with a separate adapter."""
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
            # This shadows the parameter, which stays registered: it may be tied to the embeddings.
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
    # Sharded weights are complete only during a forward pass.
    if not hasattr(model, "peft_config") or isinstance(model, FSDPModule):
        return
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not layer.disable_adapters and not layer.merged:
            weight = getattr(layer.get_base_layer(), "weight", None)
            if weight is not None and weight.dtype == torch.float32 and _active(layer):
                yield layer
