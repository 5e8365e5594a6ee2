"""The norm of a model's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pygpt.extension import C
from pygpt.ops.operation import Operation, accepts_numpy, contiguous, require_tensors


@accepts_numpy
def grad_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all elements of all tensors together.

    ``sqrt(sum(x ** 2))``, summed in an order that the tensors' sizes alone decide.

    Args:
        tensors: of any shapes, on one device; float32, bfloat16, float16 (CUDA) or float64 (CPU).

    Returns:
        A single value: float64 if any tensor is, else float32; 0 for no tensors.

    Raises:
        ValueError: if a device does not fit.
        TypeError: if a dtype does not fit.
    """
    tensors = list(tensors)
    for i, tensor in enumerate(tensors):
        require_tensors(**{f"tensors[{i}]": tensor})
    return _grad_norm(tensors)  # type: ignore[no-any-return]


def _result(tensors: list[Tensor]) -> Tensor:
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    return torch.empty((), dtype=dtype, device=tensors[0].device if tensors else None)


def _forward(tensors: list[Tensor]) -> Tensor:
    out = _result(tensors)
    C.grad_norm_forward([contiguous(tensor) for tensor in tensors], out)
    return out


_grad_norm = Operation("grad_norm", "(Tensor[] tensors) -> Tensor", forward=_forward, fake=_result)
