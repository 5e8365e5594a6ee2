"""Rows of a table by their numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Look up a row of ``table`` for each id.

    ``out[i] = table[ids[i]]``. The gradient of the table sums the rows of an id in order of position, in float32
    (float64 for float64), so it does not depend on the number of threads.

    Args:
        ids: (...), int64, each at least 0 and less than ``vocabulary``.
        table: (vocabulary, width), float32, bfloat16, float16 (CUDA) or float64 (CPU).

    Returns:
        (..., width), in the dtype of ``table``.

    Raises:
        ValueError: if a shape or device does not fit, or (on the CPU) an id is out of range: the first is named. On
            CUDA such an id gives a row of NaN and no gradient; with PYGPT_CHECK=1 it is an error there too.
        TypeError: if a dtype does not fit.
    """
    require_tensors(ids=ids, table=table)
    return _embedding(ids, table)  # type: ignore[no-any-return]


def _forward(ids: Tensor, table: Tensor) -> Tensor:
    out = table.new_empty((*ids.shape, *table.shape[1:]))
    C.embedding_forward(contiguous(ids), contiguous(table), out)
    return out


def _fake(ids: Tensor, table: Tensor) -> Tensor:
    return table.new_empty((*ids.shape, *table.shape[1:]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, table = inputs
    ctx.save_for_backward(ids)
    ctx.vocabulary = table.shape[0]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None) -> tuple[None, Tensor | None]:
    if grad_out is None:
        return None, None
    (ids,) = ctx.saved_tensors
    return None, _embedding_backward(grad_out, ids, ctx.vocabulary)


def _backward_kernel(grad_out: Tensor, ids: Tensor, vocabulary: int) -> Tensor:
    grad_table = grad_out.new_empty(vocabulary, grad_out.shape[-1])
    C.embedding_backward(contiguous(grad_out), contiguous(ids), grad_table)
    return grad_table


def _backward_fake(grad_out: Tensor, ids: Tensor, vocabulary: int) -> Tensor:
    return grad_out.new_empty(vocabulary, grad_out.shape[-1])


_embedding_backward = Operation(
    "embedding_backward",
    "(Tensor grad_out, Tensor ids, SymInt vocabulary) -> Tensor",
    forward=_backward_kernel,
    fake=_backward_fake,
)
_embedding = Operation(
    "embedding",
    "(Tensor ids, Tensor table) -> Tensor",
    forward=_forward,
    fake=_fake,
    setup=_setup,
    backward=_backward,
)
