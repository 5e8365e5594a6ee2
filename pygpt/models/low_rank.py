"""The weight that a low-rank adapter (LoRA) makes of another; `pygpt.models.adapters` says what for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pygpt import ops


class LowRank(nn.Module):
    """``W + alpha / rank · B A`` of a weight W, in the place of the weight.

    Args:
        weight: W, (out, in).
        rank: rows of A, columns of B.
        alpha: see above.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, columns, device=weight.device, dtype=weight.dtype))
        self.b = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=weight.dtype))
        bound = 1 / math.sqrt(columns)
        nn.init.uniform_(self.a, -bound, bound)
        self._keeps = False
        self._kept: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in), in the weight's dtype, also under autocast: merging must give the same."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        with torch.autocast(weight.device.type, enabled=False):
            total = ops.add(weight, ops.linear(self.b * self.scale, self.a.T.contiguous()))
        if self._keeps and not torch.is_grad_enabled():
            self._kept = total
        return total

    def keep(self, keeps: bool) -> None:
        """Whether what is computed without gradient serves later passes, too: as long as no weight changes."""
        self._keeps, self._kept = keeps, None

    def __getstate__(self) -> dict[str, Any]:
        # Of copies and pickles, whose weights may change.
        return {**self.__dict__, "_keeps": False, "_kept": None}
