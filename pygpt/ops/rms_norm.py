"""RMS norm, alone and fused with the residual sum before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Divide each row of ``x`` by its root mean square, then scale.

    ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        x: (..., width), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        weight: (width,), the dtype of ``x`` or float32.
        eps: added to the mean square; at least 0.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: if a shape, device or ``eps`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.
    """
    require_tensors(x=x)
    return _rms_norm(x, weight, eps)[0]  # type: ignore[no-any-return]


@accepts_numpy
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum, in one pass: the two steps between the parts of a pre-norm block.

    Args:
        x: (..., width), as for `rms_norm`.
        residual: the shape of ``x``, and its dtype, or float32 where ``x`` is 16-bit: a residual stream that keeps its
            bits in mixed precision.
        weight: (width,), the dtype of ``residual`` or float32.
        eps: added to the mean square; at least 0.

    Returns:
        ``(rms_norm(x + residual), x + residual)``, of the shape of ``x``: the first in its dtype, the second in that of
        ``residual``. The same bits as the two operations one after the other, the first then rounded.

    Raises:
        ValueError: if a shape, device or ``eps`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.
    """
    require_tensors(x=x, residual=residual)
    out, total = _add_rms_norm(x, residual, weight, eps)[:2]
    return out, total


def _statistics(x: Tensor) -> Tensor:
    rows = x.numel() // x.shape[-1] if x.dim() and x.shape[-1] else 0
    return x.new_empty(rows, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = contiguous(x)
    out, rstd = torch.empty_like(x), _statistics(x)
    C.rms_norm_forward(x, None, contiguous(weight), eps, out, None, rstd)
    return out, rstd


def _inference(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor]:
    x = contiguous(x)
    out = torch.empty_like(x)
    C.rms_norm_forward(x, None, contiguous(weight), eps, out, None, None)
    return (out,)


def _fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), _statistics(x)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[-1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None
    grad_x, _, grad_weight = _rms_norm_backward(grad_out, None, *ctx.saved_tensors)
    return grad_x, grad_weight, None


def _add_forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    x, residual = contiguous(x), contiguous(residual)
    out, total, rstd = torch.empty_like(x), torch.empty_like(residual), _statistics(x)
    C.rms_norm_forward(x, residual, contiguous(weight), eps, out, total, rstd)
    return out, total, rstd


def _add_fake(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, torch.empty_like(out, dtype=residual.dtype), _statistics(x)


def _add_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, total, rstd = output
    ctx.save_for_backward(total, inputs[2], rstd)
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _add_backward(ctx: Any, grad_out: Tensor | None, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None if grad_total is None else grad_total.to(ctx.dtype), grad_total, None, None
    grad_sum, grad_x, grad_weight = _rms_norm_backward(grad_out, grad_total, *ctx.saved_tensors)
    return grad_sum if ctx.dtype == grad_sum.dtype else grad_x, grad_sum, grad_weight, None


def _backward_kernel(
    grad_out: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_out, grad_sum, x, weight, rstd)
    grad_x, grad_narrow, grad_weight = grads
    C.rms_norm_backward(
        contiguous(grad_out),
        contiguous(grad_sum),
        contiguous(x),
        contiguous(weight),
        rstd,
        grad_x,
        None if grad_out.dtype == x.dtype else grad_narrow,
        grad_weight,
    )
    return grads


def _backward_fake(
    grad_out: Tensor, grad_sum: Tensor | None, x: Tensor, weight: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    contiguous_format = torch.contiguous_format
    return (
        torch.empty_like(x, memory_format=contiguous_format),
        grad_out.new_empty((0,) if grad_out.dtype == x.dtype else x.shape),
        torch.empty_like(weight, memory_format=contiguous_format),
    )


_rms_norm_backward = Operation(
    "rms_norm_backward",
    "(Tensor grad_out, Tensor? grad_sum, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_rms_norm = Operation(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    inference=_inference,
)
_add_rms_norm = Operation(
    "add_rms_norm",
    "(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    forward=_add_forward,
    fake=_add_fake,
    setup=_add_setup,
    backward=_add_backward,
)
