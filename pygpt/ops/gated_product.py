"""The middle of a feed-forward network with a gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def gated_product(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """``activation(gate) * up``, element by element.

    Args:
        gate: any shape, float32, bfloat16, float16 (CUDA) or float64 (CPU).
        up: the shape and dtype of ``gate``.
        activation: ``"silu"``: ``x / (1 + e^-x)``; or ``"gelu_tanh"``, as in `linear`.

    Returns:
        The shape and dtype of ``gate``; rounded once.

    Raises:
        ValueError: if a shape, device or ``activation`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5 and 6.
    """
    require_tensors(gate=gate, up=up)
    return _gated_product(gate, up, activation)  # type: ignore[no-any-return]


def _forward(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    gate = contiguous(gate)
    out = torch.empty_like(gate)
    C.gated_product_forward(gate, contiguous(up), activation, out)
    return out


def _fake(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.activation = inputs
    ctx.save_for_backward(gate, up)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None
    return (*_gated_product_backward(grad_out, *ctx.saved_tensors, ctx.activation), None)


def _backward_kernel(grad_out: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    gate = contiguous(gate)
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
    C.gated_product_backward(contiguous(grad_out), gate, contiguous(up), activation, grad_gate, grad_up)
    return grad_gate, grad_up


def _backward_fake(grad_out: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    grad = torch.empty_like(gate, memory_format=torch.contiguous_format)
    return grad, torch.empty_like(grad)


_gated_product_backward = Operation(
    "gated_product_backward",
    "(Tensor grad_out, Tensor gate, Tensor up, str activation) -> (Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_gated_product = Operation(
    "gated_product",
    "(Tensor gate, Tensor up, str activation) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
