"""Rotary positions: queries and keys are turned by angles that grow with their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors, unit_stride


@accepts_numpy
def rotary(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Turn elements i and i + head_dim / 2 of each head, as one pair, by the i-th angle of their token's position.

    ``out[i] = x[i] cos - x[i + head_dim / 2] sin`` and ``out[i + head_dim / 2] = x[i + head_dim / 2] cos + x[i] sin``.
    Queries and keys that lie side by side are turned in one call.

    Args:
        x: (batch, time, heads, head_dim), head_dim even, float32, bfloat16, float16 (CUDA) or float64 (CPU); heads may
            be a part of more.
        positions: (time,), or (batch, time) where each row has its own, int64: rows of the table.
        table: (positions, head_dim), the dtype of ``x`` or float32: the cosines of a position's angles, then the sines.
            It has no gradient.

    Returns:
        The shape and dtype of ``x``. A position out of range is an error on the CPU; on a CUDA device its token is NaN.

    Raises:
        ValueError: if a shape, device or position does not fit, or if the table asks for a gradient.
        TypeError: if a dtype does not fit.

    Source: Su et al., "RoFormer", 2021, eq. 34, in the pairs of Hugging Face's Llama.
    """
    require_tensors(x=x, positions=positions, table=table)
    if table.requires_grad:
        raise ValueError("table must not require a gradient: rotary has none for it")
    return _rotary(x, positions, table, False)  # type: ignore[no-any-return]


def _forward(x: Tensor, positions: Tensor, table: Tensor, back: bool) -> Tensor:
    x = unit_stride(x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    C.rotary_forward(x, contiguous(positions), contiguous(table), back, out)
    return out


def _fake(x: Tensor, positions: Tensor, table: Tensor, back: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, positions, table, ctx.back = inputs
    ctx.save_for_backward(positions, table)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return None, None, None, None
    return _rotary(grad_out, *ctx.saved_tensors, not ctx.back), None, None, None


_rotary = Operation(
    "rotary",
    "(Tensor x, Tensor positions, Tensor table, bool back) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
