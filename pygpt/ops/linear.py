"""Linear layers: a matrix product with bias, activation and residual fused to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, autocast, contiguous, require_tensors


@accepts_numpy
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    packed_weight: Tensor | None = None,
    decode: bool = False,
) -> Tensor:
    """``activation(x W^T + b) + residual`` over the last dimension.

    Sums, bias, activation and residual are in float32 (float64 for float64) and rounded once, to the result's dtype.
    Under autocast the product is in its dtype.

    Args:
        x: (..., in), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        weight: (out, in), the dtype of ``x``, or float32 where ``x`` is 16-bit: it is then rounded on the way.
        bias: (out,), the dtype of ``x`` or float32, or None.
        activation: ``"gelu"`` (exact), ``"gelu_tanh"`` (its approximation by a tanh), ``"relu"`` or None.
        residual: (..., out), the dtype of the result, or None.
        out_dtype: the dtype of the result, that of ``x`` or float32; by default that of ``residual``, else of ``x``.
        packed_weight: what `pack_linear` made of ``weight`` in the dtype of ``x``, or None. The result has the same
            bits with it. The weight must not have changed since. Packed weights are for the CPU.
        decode: let kernels for few rows run, on CUDA, where training's ask for many. Their bits are others, but depend
            on the row alone as well.

    Returns:
        (..., out).

    Raises:
        ValueError: if a shape, device or ``activation`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Hendrycks, Gimpel, "Gaussian error linear units", 2016, for both forms of GELU.
    """
    require_tensors(x=x, weight=weight)
    (x,) = autocast(x)
    return _linear(x, weight, bias, activation, residual, out_dtype, packed_weight, decode)[0]  # type: ignore[no-any-return]


def pack_linear(weight: Tensor) -> Tensor:
    """A copy of ``weight`` in the order in which `linear` reads it on the CPU, for many calls with unchanged weights.

    Args:
        weight: (out, in), float32, bfloat16 or float64, on the CPU.

    Returns:
        One-dimensional, uint8. Its layout depends on the weight's shape and dtype alone, not on the implementation.

    Raises:
        ValueError: if the shape or device does not fit.
        TypeError: if the dtype does not fit.
    """
    return pack_linears([weight])[0]


def pack_linears(weights: Sequence[Tensor]) -> list[Tensor]:
    """What `pack_linear` makes of each weight, in one block of memory, which has large pages where the system has them.

    A product of one row reads a weight as fast as memory gives it, and pages of 4 KiB are looked up too slowly for
    that: through them 15 GB/s are read, through large ones 58 GB/s (AMD Zen 4, 2 threads).

    Args:
        weights: as `pack_linear` takes them, all of one device.

    Raises:
        ValueError: if a shape or device does not fit.
        TypeError: if a dtype does not fit.
    """
    for weight in weights:
        require_tensors(weight=weight)
    weights = [contiguous(weight.detach()) for weight in weights]
    sizes = [C.linear_packed_bytes(weight) for weight in weights]
    block = torch.empty(sum(sizes), dtype=torch.uint8, device=weights[0].device if weights else None)
    C.use_huge_pages(block)
    packed = list(block.split(sizes))  # type: ignore[no-untyped-call]
    for weight, part in zip(weights, packed, strict=True):
        C.linear_pack(weight, part)
    return packed


def _out(x: Tensor, weight: Tensor, residual: Tensor | None, out_dtype: torch.dtype | None) -> Tensor:
    if out_dtype is None:
        out_dtype = x.dtype if residual is None else residual.dtype
    return x.new_empty((*x.shape[:-1], *weight.shape[:1]), dtype=out_dtype)


def _pre_activation(x: Tensor, weight: Tensor, activation: str | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], *weight.shape[:1]) if activation else (0,))


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    packed_weight: Tensor | None,
    decode: bool,
) -> tuple[Tensor, Tensor]:
    x, weight, residual = contiguous(x), contiguous(weight), contiguous(residual)
    out, kept = _out(x, weight, residual, out_dtype), _pre_activation(x, weight, activation)
    C.linear_forward(
        x, weight, packed_weight, contiguous(bias), activation, residual, out, kept if activation else None, decode
    )
    return out, kept


def _inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    packed_weight: Tensor | None,
    decode: bool,
) -> tuple[Tensor]:
    x, weight, residual = contiguous(x), contiguous(weight), contiguous(residual)
    out = _out(x, weight, residual, out_dtype)
    C.linear_forward(x, weight, packed_weight, contiguous(bias), activation, residual, out, None, decode)
    return (out,)


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    packed_weight: Tensor | None,
    decode: bool,
) -> tuple[Tensor, Tensor]:
    return _out(x, weight, residual, out_dtype), _pre_activation(x, weight, activation)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, ctx.activation, residual, _, _, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_residual = residual is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 8
    x, weight, kept = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    bias_dtype = ctx.bias_dtype if needs_bias else None
    grad_x, grad_weight, grad_bias = _linear_backward(
        grad_out, x, weight, kept, ctx.activation, needs_x, needs_weight, bias_dtype
    )
    return (
        grad_x if needs_x else None,
        grad_weight if needs_weight else None,
        grad_bias if needs_bias else None,
        None,
        grad_out if ctx.has_residual else None,
        None,
        None,
        None,
    )


def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Tensor,
    activation: str | None,
    needs_x: bool,
    needs_weight: bool,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if needs_x else (0,)),
        weight.new_empty(weight.shape if needs_weight else (0,)),
        weight.new_empty(weight.shape[:1] if bias_dtype else (0,), dtype=bias_dtype),
    )


def _backward_kernel(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Tensor,
    activation: str | None,
    needs_x: bool,
    needs_weight: bool,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_out, x, weight, kept, activation, needs_x, needs_weight, bias_dtype)
    C.linear_backward(
        contiguous(grad_out),
        contiguous(x),
        contiguous(weight),
        kept if activation else None,
        activation,
        grads[0] if needs_x else None,
        grads[1] if needs_weight else None,
        grads[2] if bias_dtype else None,
    )
    return grads


_linear_backward = Operation(
    "linear_backward",
    "(Tensor grad_out, Tensor x, Tensor weight, Tensor pre_activation, str? activation, bool needs_x,"
    " bool needs_weight, ScalarType? bias_dtype) -> (Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_linear = Operation(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, str? activation, Tensor? residual, ScalarType? out_dtype,"
    " Tensor? packed_weight, bool decode) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    inference=_inference,
)
