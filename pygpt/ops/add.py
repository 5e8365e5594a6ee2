"""The sum of two tensors: residuals, and position embeddings over a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def add(x: Tensor, y: Tensor) -> Tensor:
    """Add ``y`` to ``x``, or to each part of ``x`` where ``y`` lacks leading dimensions.

    Args:
        x: (..., *shape of y), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        y: the dtype of ``x``; its shape, or that of its last dimensions (leading ones of size 1 may stand before).

    Returns:
        ``x + y``, with the shape and dtype of ``x``. The gradient of ``y`` sums the parts in order.

    Raises:
        ValueError: if a shape or device does not fit.
        TypeError: if a dtype does not fit.
    """
    require_tensors(x=x, y=y)
    return _add(x, y)  # type: ignore[no-any-return]


def _forward(x: Tensor, y: Tensor) -> Tensor:
    x = contiguous(x)
    out = torch.empty_like(x)
    C.add_forward(x, contiguous(y), out)
    return out


def _fake(x: Tensor, y: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y = inputs
    ctx.y_shape = None if y.shape == x.shape else y.shape
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if grad_out is None or ctx.y_shape is None:
        return grad_out, grad_out
    return grad_out, _add_backward(grad_out, ctx.y_shape)


def _backward_kernel(grad_out: Tensor, y_shape: list[int]) -> Tensor:
    grad_y = grad_out.new_empty(y_shape)
    C.add_backward(contiguous(grad_out), grad_y)
    return grad_y


def _backward_fake(grad_out: Tensor, y_shape: list[int]) -> Tensor:
    return grad_out.new_empty(y_shape)


_add_backward = Operation(
    "add_backward", "(Tensor grad_out, SymInt[] y_shape) -> Tensor", forward=_backward_kernel, fake=_backward_fake
)
_add = Operation(
    "add", "(Tensor x, Tensor y) -> Tensor", forward=_forward, fake=_fake, setup=_setup, backward=_backward
)
