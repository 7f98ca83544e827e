"""The layer that gives the logits, in fp32 where its weights are of half precision.

A logit of 16 or more is rounded to a multiple of 0.125 in bfloat16: nats of a log-probability. Products
of half-precision numbers are summed in fp32 anyway, so the sum need only be kept.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)
# Numbers of weights or gradients that are in another precision at once: 16 MiB in fp32.
_AT_ONCE = 1 << 22


def keep_fp32_logits(model: Any) -> None:
    """Let the output layer of a half-precision model give fp32; other models stay as they are.

    Args:
        model: of transformers, with or without a PEFT adapter. An adapter of the output layer is added
            to what its base layer gives.
    """
    head = model.get_output_embeddings()
    base = head.get_base_layer() if hasattr(head, "get_base_layer") else head
    if type(base) is nn.Linear and base.weight.dtype in HALF:
        base.forward = MethodType(_forward, base)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    logits: Tensor = _Product.apply(hidden, layer.weight)
    return logits if layer.bias is None else logits + layer.bias.float()


class _Product(torch.autograd.Function):
    """hidden · weightᵀ in fp32 of two half-precision matrices; gradients in half precision, as usual."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight_VH: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight_VH)
        flat_NH = hidden.reshape(-1, hidden.shape[-1]).to(weight_VH.dtype)
        return _product(flat_NH, weight_VH).view(*hidden.shape[:-1], len(weight_VH))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight_VH = ctx.saved_tensors
        grad_NV = grad.reshape(-1, grad.shape[-1])
        rows = max(1, _AT_ONCE // grad_NV.shape[1])
        pieces = [piece.to(weight_VH.dtype) @ weight_VH for piece in grad_NV.split(rows)]
        grad_hidden = torch.cat(pieces).view(hidden.shape).to(hidden.dtype)
        if not ctx.needs_input_grad[1]:
            return grad_hidden, None
        flat_NH = hidden.reshape(-1, hidden.shape[-1]).to(weight_VH.dtype)
        return grad_hidden, grad_NV.to(weight_VH.dtype).T @ flat_NH


def _product(left_NH: Tensor, weight_VH: Tensor) -> Tensor:
    if left_NH.device.type == "cuda":
        return torch.mm(left_NH, weight_VH.T, out_dtype=torch.float32)
    # Other devices have no such product: weights are in fp32 for some tokens of the vocabulary at once.
    result_NV = left_NH.new_empty(len(left_NH), len(weight_VH), dtype=torch.float32)
    left_NH, start = left_NH.float(), 0
    for piece_MH in weight_VH.split(max(1, _AT_ONCE // weight_VH.shape[1])):
        result_NV[:, start : start + len(piece_MH)] = left_NH @ piece_MH.float().T
        start += len(piece_MH)
    return result_NV
