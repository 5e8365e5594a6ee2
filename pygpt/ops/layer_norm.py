"""Layer norm, alone and fused with the residual sum before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Normalise each row of ``x`` to zero mean and unit (biased) variance, then scale and shift.

    ``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` over the last dimension.

    Args:
        x: (..., width), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        weight: (width,), the dtype of ``x`` or float32.
        bias: (width,), the dtype of ``weight``, or None.
        eps: added to the variance; at least 0.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: if a shape, device or ``eps`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Ba, Kiros, Hinton, "Layer Normalization", 2016, eq. 4.
    """
    require_tensors(x=x)
    return _layer_norm(x, weight, bias, eps)[0]  # type: ignore[no-any-return]


@accepts_numpy
def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum, in one pass: the two steps between the parts of a pre-norm block.

    Args:
        x: (..., width), as for `layer_norm`.
        residual: the shape of ``x``, and its dtype, or float32 where ``x`` is 16-bit: a residual stream that keeps its
            bits in mixed precision.
        weight: (width,), the dtype of ``residual`` or float32.
        bias: (width,), the dtype of ``weight``, or None.
        eps: added to the variance; at least 0.

    Returns:
        ``(layer_norm(x + residual), x + residual)``, of the shape of ``x``: the first in its dtype, the second in that
        of ``residual``. The same bits as the two operations one after the other, the first then rounded.

    Raises:
        ValueError: if a shape, device or ``eps`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Ba, Kiros, Hinton, "Layer Normalization", 2016, eq. 4.
    """
    require_tensors(x=x, residual=residual)
    out, total = _add_layer_norm(x, residual, weight, bias, eps)[:2]
    return out, total


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1] if x.dim() and x.shape[-1] else 0
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(rows, dtype=dtype), x.new_empty(rows, dtype=dtype)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x = contiguous(x)
    out, (mean, rstd) = torch.empty_like(x), _statistics(x)
    C.layer_norm_forward(x, None, contiguous(weight), contiguous(bias), eps, out, None, mean, rstd)
    return out, mean, rstd


def _inference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor]:
    x = contiguous(x)
    out = torch.empty_like(x)
    C.layer_norm_forward(x, None, contiguous(weight), contiguous(bias), eps, out, None, None, None)
    return (out,)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return (torch.empty_like(x, memory_format=torch.contiguous_format), *_statistics(x))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, *output[-2:])
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None, None
    x, weight, mean, rstd = ctx.saved_tensors
    grad_x, _, grad_weight, grad_bias = _layer_norm_backward(grad_out, None, x, weight, mean, rstd)
    return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None


def _add_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = contiguous(x), contiguous(residual)
    out, total, (mean, rstd) = torch.empty_like(x), torch.empty_like(residual), _statistics(x)
    C.layer_norm_forward(x, residual, contiguous(weight), contiguous(bias), eps, out, total, mean, rstd)
    return out, total, mean, rstd


def _add_fake(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return (out, torch.empty_like(out, dtype=residual.dtype), *_statistics(x))


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weight, bias, _ = inputs
    _, total, mean, rstd = output
    ctx.save_for_backward(total, weight, mean, rstd)
    ctx.dtype = x.dtype
    ctx.has_bias = bias is not None
    ctx.set_materialize_grads(False)


def _add_backward(ctx: Any, grad_out: Tensor | None, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None if grad_total is None else grad_total.to(ctx.dtype), grad_total, None, None, None
    total, weight, mean, rstd = ctx.saved_tensors
    grad_sum, grad_x, grad_weight, grad_bias = _layer_norm_backward(grad_out, grad_total, total, weight, mean, rstd)
    grad_x = grad_sum if ctx.dtype == grad_sum.dtype else grad_x
    return grad_x, grad_sum, grad_weight, grad_bias if ctx.has_bias else None, None


def _backward_kernel(
    grad_out: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_out, grad_sum, x, weight, mean, rstd)
    grad_x, grad_narrow, grad_weight, grad_bias = grads
    C.layer_norm_backward(
        contiguous(grad_out),
        contiguous(grad_sum),
        contiguous(x),
        contiguous(weight),
        mean,
        rstd,
        grad_x,
        None if grad_out.dtype == x.dtype else grad_narrow,
        grad_weight,
        grad_bias,
    )
    return grads


def _backward_fake(
    grad_out: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    contiguous_format = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous_format),
        grad_out.new_empty((0,) if grad_out.dtype == x.dtype else x.shape),
        torch.empty_like(weight, memory_format=contiguous_format),
        torch.empty_like(weight, memory_format=contiguous_format),
    )


_layer_norm_backward = Operation(
    "layer_norm_backward",
    "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor weight, Tensor mean, Tensor rstd)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_layer_norm = Operation(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    inference=_inference,
)
_add_layer_norm = Operation(
    "add_layer_norm",
    "(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_add_forward,
    fake=_add_fake,
    setup=_add_setup,
    backward=_add_backward,
)
