"""Output layer that returns fp32 logits from half-precision weights.

In bfloat16 a logit of 16 or more is rounded to a multiple of 0.125, in nats of log-probability. Products
of half-precision numbers are accumulated in fp32 anyway, so the sum only has to be kept.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HALF = (torch.bfloat16, torch.float16)
# Numbers of weights or gradients converted to another precision at once: 16 MiB in fp32.
_AT_ONCE = 1 << 22


def keep_fp32_logits(model: Any) -> None:
    """Make the output layer of a half-precision model return fp32; leave other models unchanged.

    Args:
        model: transformers model, with or without a PEFT adapter. An adapter on the output layer is added
            to its base layer's output.
    """
    head = model.get_output_embeddings()
    base = head.get_base_layer() if hasattr(head, "get_base_layer") else head
    if type(base) is nn.Linear and base.weight.dtype in HALF:
        base.forward = MethodType(_forward, base)  # type: ignore[method-assign]


def _forward(layer: nn.Linear, hidden: Tensor) -> Tensor:
    logits: Tensor = _Product.apply(hidden, layer.weight)
    return logits if layer.bias is None else logits + layer.bias.float()


class _Product(torch.autograd.Function):
    """Product hidden · weightᵀ of half-precision matrices in fp32; gradients in half precision, as usual."""

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
    # Other devices have no such product: convert the weights to fp32, part of the vocabulary at a time.
    result_NV = left_NH.new_empty(len(left_NH), len(weight_VH), dtype=torch.float32)
    left_NH, start = left_NH.float(), 0
    for piece_MH in weight_VH.split(max(1, _AT_ONCE // weight_VH.shape[1])):
        result_NV[:, start : start + len(piece_MH)] = left_NH @ piece_MH.float().T
        start += len(piece_MH)
    return result_NV
