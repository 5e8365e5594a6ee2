"""One step of AdamW, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pygpt.extension import C


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masters: Sequence[Tensor | None],
    steps: Sequence[float] | Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    grad_scale: Tensor | None = None,
) -> None:
    """Move each parameter by one step of AdamW; each array is read and written once.

    With ``g = grad * grad_scale`` and ``t = step``::

        exp_avg = beta1 * exp_avg + (1 - beta1) * g
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * g * g
        param = (1 - lr * weight_decay) * param
                - lr / (1 - beta1**t) * exp_avg / (sqrt(exp_avg_sq / (1 - beta2**t)) + eps)

    Args:
        params: contiguous; float32, bfloat16, float16 (CUDA) or float64 (CPU).
        grads: contiguous, each the shape and dtype of its parameter.
        exp_avgs: contiguous, the parameters' shapes; float32, or float64 for float64.
        exp_avg_sqs: like ``exp_avgs``.
        masters: for each parameter None, or for one of 16 bits its float32 copy: that is what moves, and the parameter
            becomes it, rounded.
        steps: for each parameter how many steps it has taken, this one included. Numbers, or, as the learning rate then
            is too, single float32 beside the parameter, which a CUDA graph reads anew with every replay.
        lr: learning rate: a number, or a single float32.
        betas: how much of the mean gradient and of the mean squared gradient the step keeps; each in [0, 1).
        eps: added to the root of the mean squared gradient; at least 0.
        weight_decay: the share of the parameter that a step of learning rate 1 would take away.
        grad_scale: a single float32: the gradients' factor, such as a clipping coefficient; None: 1.

    Raises:
        ValueError: if a length, shape, device or option does not fit.
        TypeError: if a dtype does not fit.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """
    written = [*params, *exp_avgs, *exp_avg_sqs, *(master for master in masters if master is not None)]
    C.adamw_step(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        list(masters),
        list(steps),
        lr,
        *betas,
        eps,
        weight_decay,
        grad_scale,
    )
    for tensor in written:
        torch.autograd.graph.increment_version(tensor)
