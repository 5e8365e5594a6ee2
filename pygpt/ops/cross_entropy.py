"""The loss of a language model: cross-entropy of logits with the tokens that came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """Negative log-probability of each target under the softmax of its row of logits.

    ``log(sum(exp(logits))) - logits[target]``, over the last dimension.

    Args:
        logits: (..., vocabulary), float32, bfloat16, float16 (CUDA) or float64 (CPU).
        targets: (...), int64, each at least 0 and less than ``vocabulary``, or ``ignore_index``.
        ignore_index: rows with this target have loss 0 and no gradient, whatever their logits hold.
        reduction: ``"mean"`` over the rows that are not ignored (0 if there are none), ``"sum"`` or ``"none"``.

    Returns:
        float32 (float64 for float64 logits): a single value, or for ``"none"`` the shape of ``targets``.

    Raises:
        ValueError: if a shape, device or ``reduction`` does not fit, or (on the CPU) a target is out of range: the
            first is named. On CUDA such a target makes the loss NaN; with PYGPT_CHECK=1 it is an error there too.
        TypeError: if a dtype does not fit.
    """
    require_tensors(logits=logits, targets=targets)
    return _cross_entropy(logits, targets, ignore_index, reduction)[0]  # type: ignore[no-any-return]


def _results(logits: Tensor, targets: Tensor, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    loss_shape = targets.shape if reduction == "none" else ()
    loss = logits.new_empty(loss_shape, dtype=dtype)
    return loss, logits.new_empty(targets.shape, dtype=dtype), logits.new_empty(targets.shape, dtype=dtype)


def _forward(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    loss, maximum, total = _results(logits, targets, reduction)
    C.cross_entropy_forward(contiguous(logits), contiguous(targets), ignore_index, reduction, loss, maximum, total)
    return loss, maximum, total


def _inference(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> tuple[Tensor]:
    loss = _results(logits, targets, reduction)[0]
    C.cross_entropy_forward(contiguous(logits), contiguous(targets), ignore_index, reduction, loss, None, None)
    return (loss,)


def _fake(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    return _results(logits, targets, reduction)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, ctx.ignore_index, ctx.reduction = inputs
    ctx.save_for_backward(logits, targets, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, None, None, None]:
    if grad_loss is None:
        return None, None, None, None
    logits, targets, maximum, total = ctx.saved_tensors
    grad = _cross_entropy_backward(grad_loss, logits, targets, maximum, total, ctx.ignore_index, ctx.reduction)
    return grad, None, None, None


def _backward_kernel(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    maximum: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    logits = contiguous(logits)
    grad = torch.empty_like(logits)
    C.cross_entropy_backward(
        contiguous(grad_loss), logits, contiguous(targets), maximum, total, ignore_index, reduction, grad
    )
    return grad


def _backward_fake(
    grad_loss: Tensor,
    logits: Tensor,
    targets: Tensor,
    maximum: Tensor,
    total: Tensor,
    ignore_index: int,
    reduction: str,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


_cross_entropy_backward = Operation(
    "cross_entropy_backward",
    "(Tensor grad_loss, Tensor logits, Tensor targets, Tensor maximum, Tensor sum, int ignore_index, str reduction)"
    " -> Tensor",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_cross_entropy = Operation(
    "cross_entropy",
    "(Tensor logits, Tensor targets, int ignore_index, str reduction) -> (Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
    inference=_inference,
)
