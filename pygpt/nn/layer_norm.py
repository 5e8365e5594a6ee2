"""Layer norm as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops


class LayerNorm(nn.Module):
    """``pygpt.ops.layer_norm`` with its parameters.

    Args:
        width: of the last dimension of the input.
        eps: added to the variance.
        bias: whether there is a shift beside the scale.
        device: where the parameters are made.
        dtype: of the parameters.

    The keys of the state dict are `torch.nn.LayerNorm`'s: ``weight`` (width,) and ``bias`` (width,).
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        width: int,
        eps: float = 1e-5,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale by one and shift by nothing."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., width) over its last dimension."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.width}, eps={self.eps}, bias={self.bias is not None}"
