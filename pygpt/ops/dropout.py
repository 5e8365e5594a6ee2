"""Dropout, and the seeds from which ops that drop draw their masks."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def dropout(x: Tensor, p: float, seed: int | Tensor | None = None) -> Tensor:
    """Set each element to zero with probability ``p``, and scale the others by ``1 / (1 - p)``.

    Element i of batch row b is dropped or kept by the Philox bits of (seed + b, i), so a row's mask does not depend on
    the rows beside it, and the same seed gives the same mask. ``csrc/core/philox.h`` says where each bit comes from.

    Args:
        x: (batch, ...), float32, bfloat16, float16 (CUDA) or float64 (CPU); with fewer than two dimensions, one row.
        p: 0 to 1. 0 returns ``x``; 1 gives zeros.
        seed: an int, or an int64 tensor without dimensions on the device of ``x``. None draws one from torch's default
            generator.

    Returns:
        The shape and dtype of ``x``. The gradient has the same mask.

    Raises:
        ValueError: if ``p``, or the seed's shape or device, does not fit.
        TypeError: if a dtype does not fit.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", 2014.
    """
    require_tensors(x=x)
    if p == 0:
        return x
    return _dropout(x, seed_tensor(seed, x.device), p)  # type: ignore[no-any-return]


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed of an op that drops, as an int64 tensor without dimensions; drawn if it is None.

    A tensor, because a number would be frozen into a compiled or recorded graph, and every run would drop the same.
    """
    if seed is None:
        return torch.randint(2**63 - 1, (), device=device)
    if isinstance(seed, Tensor):
        return seed
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an int, an int64 tensor or None, but is a {type(seed).__name__}") from None
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit in 64 bits, but is {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)  # no copy: it may stand in a CUDA graph


def _forward(x: Tensor, seed: Tensor, p: float) -> Tensor:
    x = contiguous(x)
    out = torch.empty_like(x)
    C.dropout_forward(x, seed, p, out)
    return out


def _fake(x: Tensor, seed: Tensor, p: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, seed, ctx.p = inputs
    ctx.save_for_backward(seed)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[Tensor | None, None, None]:
    if grad_out is None:
        return None, None, None
    (seed,) = ctx.saved_tensors
    return _dropout(grad_out, seed, ctx.p), None, None


_dropout = Operation(
    "dropout",
    "(Tensor x, Tensor seed, float p) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
