"""The feed-forward part of a transformer: two linear layers with an activation between them, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, autocast, contiguous, require_tensors


@accepts_numpy
def feed_forward(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str | None = "gelu_tanh",
    packed_w_in: Tensor | None = None,
    packed_w_out: Tensor | None = None,
    decode: bool = False,
) -> Tensor:
    """``activation(x W_in^T + b_in) W_out^T + b_out`` over the last dimension.

    The same bits as two calls of `linear`. The backward computes the activated values again, so that one tensor of the
    hidden width is kept for it instead of two. Under autocast the products are in its dtype.

    Args:
        x: (..., width), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        w_in: (hidden, width), the dtype of ``x``, or float32 where ``x`` is 16-bit: it is then rounded on the way.
        b_in: (hidden,), the dtype of ``x`` or float32, or None.
        w_out: (out, hidden), the dtype of ``w_in``.
        b_out: (out,), the dtype of ``x`` or float32, or None.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"relu"`` or None, as in `linear`.
        packed_w_in: what `pack_linear` made of ``w_in`` in the dtype of ``x``, on the CPU, or None.
        packed_w_out: the same of ``w_out``.
        decode: as in `linear`.

    Returns:
        (..., out), the dtype of ``x``.

    Raises:
        ValueError: if a shape, device or ``activation`` does not fit.
        TypeError: if a dtype does not fit.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.3.
    """
    require_tensors(x=x, w_in=w_in, w_out=w_out)
    (x,) = autocast(x)
    return _feed_forward(x, w_in, b_in, w_out, b_out, activation, packed_w_in, packed_w_out, decode)[0]  # type: ignore[no-any-return]


def _wide(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], *weight.shape[:1]))


def _run(
    pre_activation: Tensor | None,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    activation: str | None,
    packed_w_in: Tensor | None,
    packed_w_out: Tensor | None,
    decode: bool,
) -> Tensor:
    out = _wide(x, w_out)
    biases = contiguous(b_in), contiguous(b_out)
    C.feed_forward_forward(
        contiguous(x),
        contiguous(w_in),
        biases[0],
        contiguous(w_out),
        biases[1],
        packed_w_in,
        packed_w_out,
        activation,
        out,
        pre_activation,
        decode,
    )
    return out


def _forward(x: Tensor, w_in: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    pre_activation = _wide(x, w_in)
    return _run(pre_activation, x, w_in, *rest), pre_activation


def _inference(x: Tensor, w_in: Tensor, *rest: Any) -> tuple[Tensor]:
    return (_run(None, x, w_in, *rest),)


def _fake(x: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _wide(x, w_out), _wide(x, w_in)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, w_in, b_in, w_out, b_out, ctx.activation, _, _, _ = inputs
    ctx.save_for_backward(x, w_in, w_out, output[1])
    ctx.bias_dtypes = tuple(None if bias is None else bias.dtype for bias in (b_in, b_out))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 9
    x, w_in, w_out, pre_activation = ctx.saved_tensors
    needs = ctx.needs_input_grad[:5]
    grads = _feed_forward_backward(
        grad_out,
        x,
        w_in,
        w_out,
        pre_activation,
        ctx.activation,
        needs[0],
        needs[1],
        ctx.bias_dtypes[0] if needs[2] else None,
        needs[3],
        ctx.bias_dtypes[1] if needs[4] else None,
    )
    return (*(grad if needed else None for grad, needed in zip(grads, needs, strict=True)), None, None, None, None)


def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre_activation: Tensor,
    activation: str | None,
    needs_x: bool,
    needs_w_in: bool,
    b_in_dtype: torch.dtype | None,
    needs_w_out: bool,
    b_out_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape if needs_x else (0,)),
        w_in.new_empty(w_in.shape if needs_w_in else (0,)),
        w_in.new_empty(w_in.shape[:1] if b_in_dtype else (0,), dtype=b_in_dtype),
        w_out.new_empty(w_out.shape if needs_w_out else (0,)),
        w_out.new_empty(w_out.shape[:1] if b_out_dtype else (0,), dtype=b_out_dtype),
    )


def _backward_kernel(
    grad_out: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre_activation: Tensor,
    activation: str | None,
    *needs: bool | torch.dtype | None,
) -> tuple[Tensor, ...]:
    grads = _backward_fake(grad_out, x, w_in, w_out, pre_activation, activation, *needs)  # type: ignore[arg-type]
    C.feed_forward_backward(
        contiguous(grad_out),
        contiguous(x),
        contiguous(w_in),
        contiguous(w_out),
        pre_activation,
        activation,
        *(grad if needed else None for grad, needed in zip(grads, needs, strict=True)),
    )
    return grads


_feed_forward_backward = Operation(
    "feed_forward_backward",
    "(Tensor grad_out, Tensor x, Tensor w_in, Tensor w_out, Tensor pre_activation, str? activation, bool needs_x,"
    " bool needs_w_in, ScalarType? b_in_dtype, bool needs_w_out, ScalarType? b_out_dtype)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_feed_forward = Operation(
    "feed_forward",
    "(Tensor x, Tensor w_in, Tensor? b_in, Tensor w_out, Tensor? b_out, str? activation, Tensor? packed_w_in,"
    " Tensor? packed_w_out, bool decode) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    inference=_inference,
)
