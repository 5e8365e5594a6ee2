"""The feed-forward network with a gate as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.nn.linear import Linear

# What is written ``activation`` -> what acts on the gate.
GATES = {"swiglu": "silu", "geglu": "gelu_tanh"}


class GatedFeedForward(nn.Module):
    """``dropout((activation(x W_gate^T) * x W_up^T) W_down^T)`` (and biases), applied to each position.

    Args:
        width: of input and output.
        hidden: width between the matrices.
        activation: ``"swiglu"``: the gate's is SiLU; ``"geglu"``: the tanh form of GELU.
        bias: whether the maps have biases.
        dropout: probability with which each element of the output is dropped in training.
        device: where the parameters are made.
        dtype: of the parameters.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, eq. 6.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str = "swiglu",
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in GATES:
            raise ValueError(f"activation must be one of {', '.join(GATES)}, not {activation!r}")
        self.activation = activation
        self.dropout = dropout
        self.gate = Linear(width, hidden, bias, device=device, dtype=dtype)
        self.up = Linear(width, hidden, bias, device=device, dtype=dtype)
        self.down = Linear(hidden, width, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, decode: bool = False) -> Tensor:
        """Map (..., width) to (..., width); ``decode`` as in `pygpt.ops.linear`."""
        hidden = ops.gated_product(self.gate(x, decode), self.up(x, decode), GATES[self.activation])
        out: Tensor = self.down(hidden, decode)
        return ops.dropout(out, self.dropout) if self.training else out

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"activation={self.activation!r}, dropout={self.dropout}"
