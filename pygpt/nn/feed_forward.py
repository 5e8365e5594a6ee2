"""The feed-forward network of a transformer block as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.nn.linear import Linear
from pygpt.nn.quantized_linear import QuantizedLinear


class FeedForward(nn.Module):
    """``dropout(activation(x W_up^T + b_up) W_down^T + b_down)``, applied to each position.

    Args:
        width: of input and output.
        hidden: width between the two matrices; None: four times ``width``.
        activation: ``"gelu_tanh"``, ``"gelu"`` or ``"relu"``.
        bias: whether the two maps have biases.
        dropout: probability with which each element of the output is dropped in training.
        device: where the parameters are made.
        dtype: of the parameters.

    Source: Vaswani et al., "Attention Is All You Need", 2017, eq. 2.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        activation: str = "gelu_tanh",
        bias: bool = True,
        dropout: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        self.activation = activation
        self.dropout = dropout
        self.up = Linear(width, hidden, bias, device=device, dtype=dtype)
        self.down = Linear(hidden, width, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor, decode: bool = False) -> Tensor:
        """Map (..., width) to (..., width); ``decode`` as in `pygpt.ops.linear`."""
        up, down = self.up, self.down
        if isinstance(up, QuantizedLinear):  # and so is down: a model is quantised as a whole
            return down(up(x, activation=self.activation))
        out = ops.feed_forward(
            x, up.weight, up.bias, down.weight, down.bias, self.activation, up.packed(), down.packed(), decode
        )
        return ops.dropout(out, self.dropout) if self.training else out

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"activation={self.activation!r}, dropout={self.dropout}"
