"""The loss of a language model from its last hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, autocast, contiguous, require_tensors


@accepts_numpy
def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`cross_entropy` of the logits ``hidden W^T + b``.

    The loss has the bits of ``cross_entropy(linear(hidden, weight, bias, out_dtype=torch.float32), targets)``, with
    memory for the logits of a few rows only. Where a gradient is wanted of a mean or a sum, it is computed together
    with the loss, since a backward would have to compute the logits again; but for float16, which computes it when the
    loss's own gradient is known: a scaled loss is to keep it from underflow. Under autocast the products are in its
    dtype.

    Args:
        hidden: (..., width), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        weight: (vocabulary, width), the dtype of ``hidden``, or float32 where that is 16-bit: it is then rounded.
        targets: (...), int64, each at least 0 and less than ``vocabulary``, or ``ignore_index``.
        bias: (vocabulary,), the dtype of ``hidden`` or float32, or None.
        ignore_index: rows with this target have loss 0 and no gradient, whatever they hold.
        reduction: ``"mean"`` over the rows that are not ignored (0 if there are none), ``"sum"`` or ``"none"``.

    Returns:
        float32 (float64 for float64): a single value, or for ``"none"`` the shape of ``targets``.

    Raises:
        ValueError: if a shape, device or ``reduction`` does not fit, or (on the CPU) a target is out of range: the
            first is named.
        TypeError: if a dtype does not fit.
    """
    require_tensors(hidden=hidden, weight=weight, targets=targets)
    (hidden,) = autocast(hidden)
    wants = tuple(
        torch.is_grad_enabled() and isinstance(tensor, Tensor) and tensor.requires_grad
        for tensor in (hidden, weight, bias)
    )
    return _linear_cross_entropy(hidden, weight, bias, targets, ignore_index, reduction, *wants)[0]  # type: ignore[no-any-return]


def _early(hidden: Tensor, reduction: str) -> bool:
    """Whether gradients are computed together with the loss."""
    return reduction != "none" and hidden.dtype != torch.float16


def _number(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, wants: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors for the gradients; empty for those that are not wanted."""
    bias_like = weight if bias is None else bias
    return (
        hidden.new_empty(hidden.shape if wants[0] else (0,)),
        weight.new_empty(weight.shape if wants[1] else (0,)),
        bias_like.new_empty(weight.shape[:1] if wants[2] else (0,)),
    )


def _fake(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    *wants: bool,
) -> tuple[Tensor, ...]:
    early = _early(hidden, reduction)
    loss = hidden.new_empty(targets.shape if reduction == "none" else (), dtype=_number(hidden))
    return loss, *_gradients(hidden, weight, bias, tuple(early and want for want in wants))  # type: ignore[arg-type]


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    reduction: str,
    *wants: bool,
) -> tuple[Tensor, ...]:
    loss, *grads = _fake(hidden, weight, bias, targets, ignore_index, reduction, *wants)
    early = _early(hidden, reduction)
    C.linear_cross_entropy_forward(
        contiguous(hidden),
        contiguous(weight),
        contiguous(bias),
        contiguous(targets),
        ignore_index,
        reduction,
        loss,
        None,
        *(grad if want and early else None for grad, want in zip(grads, wants, strict=True)),
    )
    return loss, *grads


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, ctx.ignore_index, ctx.reduction, *ctx.wants = inputs
    ctx.early = _early(hidden, ctx.reduction)
    ctx.save_for_backward(*(output[1:] if ctx.early else (hidden, weight, bias, targets)))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 9
    if ctx.early:
        grads = [grad * grad_loss for grad in ctx.saved_tensors]
    else:
        targets = ctx.saved_tensors[-1]
        if ctx.reduction == "mean":
            grad_loss = grad_loss / (targets != ctx.ignore_index).sum().clamp(min=1)
        grad_losses = grad_loss.expand(targets.shape)
        grads = _linear_cross_entropy_backward(grad_losses, *ctx.saved_tensors, ctx.ignore_index, *ctx.wants)
    wanted = (grad if want else None for grad, want in zip(grads, ctx.wants, strict=True))
    return (*wanted, *(None,) * 6)


def _backward_fake(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    *wants: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(hidden, weight, bias, wants)  # type: ignore[arg-type]


def _backward_kernel(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    *wants: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _gradients(hidden, weight, bias, wants)  # type: ignore[arg-type]
    C.linear_cross_entropy_forward(
        contiguous(hidden),
        contiguous(weight),
        contiguous(bias),
        contiguous(targets),
        ignore_index,
        "none",
        None,
        contiguous(grad_losses),
        *(grad if want else None for grad, want in zip(grads, wants, strict=True)),
    )
    return grads


_linear_cross_entropy_backward = Operation(
    "linear_cross_entropy_backward",
    "(Tensor grad_losses, Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int ignore_index,"
    " bool wants_hidden, bool wants_weight, bool wants_bias) -> (Tensor, Tensor, Tensor)",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_linear_cross_entropy = Operation(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int ignore_index, str reduction, bool wants_hidden,"
    " bool wants_weight, bool wants_bias) -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
