"""What `compare.py` measures, whatever it is: a case, with its contenders and the work that has to be done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What has to be done at least."""

    operations: float  # a multiply-add counts as two
    elements: float  # read or written, of the case's dtype
    other_bytes: float = 0
    multiplied_as: torch.dtype | None = None  # whose rate of operations is the limit; None: the case's dtype

    def bytes(self, dtype: torch.dtype) -> float:
        """Memory traffic."""
        return self.elements * dtype.itemsize + self.other_bytes

    def __add__(self, more: Work) -> Work:
        return Work(
            self.operations + more.operations,
            self.elements + more.elements,
            self.other_bytes + more.other_bytes,
            self.multiplied_as,
        )


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    op: str | None  # as in csrc/ops; None: a whole model
    name: str
    shape: str
    dtype: torch.dtype
    direction: str
    work: Work | None  # None: too small for a limit to mean anything
    contenders: Callable[[bool], dict[str, Call]]  # "pygpt", "eager", "compiled" if that is asked for, other rivals
    errors: Callable[[], tuple[float, float | None]]  # ours and PyTorch's, where that can be compared
    recorded: bool = True  # on a GPU: whether it is replayed from a CUDA graph


def largest_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference from float64, relative to the largest value of its tensor."""
    return max(
        float((result.double() - right).abs().max()) / (float(right.abs().max()) or 1.0)
        for result, right in zip(results, exact, strict=True)
    )
