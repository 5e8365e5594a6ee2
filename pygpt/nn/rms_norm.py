"""Root-mean-square norm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        width: of the last dimension of the input.
        eps: added to the mean square.
        device: where the parameters are made.
        dtype: of the parameters.

    The key of the state dict is `torch.nn.RMSNorm`'s: ``weight`` (width,).

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4.
    """

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale by one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width) over its last dimension."""
        return ops.rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.width}, eps={self.eps}"
