"""The affine map with a weight in 8 or 4 bits as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pygpt import ops
from pygpt.extension import C
from pygpt.ops.quantized_linear import check_scheme


class QuantizedLinear(nn.Module):
    """``pygpt.ops.quantized_linear`` with its weight: ``x W^T + b``, for sampling on the CPU.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        scheme: ``"int8"`` or ``"int4"``, see `pygpt.ops.quantize_weight`.
        bias: whether there is a ``b``.
        device: where the tensors are made.
        dtype: of the bias.

    Raises:
        ValueError: if there is no such scheme.

    In the state dict are ``weight``, one-dimensional, uint8, as `pygpt.ops.quantize_weight` makes it, and ``bias``
    (out_features,). Both hold whatever the memory did until they are loaded; `of` makes a module from a matrix.
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scheme: str,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_scheme(scheme)
        self.in_features = in_features
        self.out_features = out_features
        self.scheme = scheme
        size = C.quantized_linear_packed_bytes(out_features, in_features, scheme)
        self.register_buffer("weight", torch.empty(size, dtype=torch.uint8, device=device))
        made = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype), False) if bias else None
        self.register_parameter("bias", made)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, scheme: str) -> QuantizedLinear:
        """The module that stands for ``x W^T + b`` with a weight (out_features, in_features), which is rounded.

        Raises:
            ValueError: as `pygpt.ops.quantize_weight`.
        """
        made = cls(weight.shape[1], weight.shape[0], scheme, False, device="meta")
        made.weight = ops.quantize_weight(weight, scheme)
        made.bias = None if bias is None else nn.Parameter(bias.detach(), False)
        return made

    def forward(
        self,
        x: Tensor,
        decode: bool = False,
        *,
        activation: str | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Map (..., in_features) to (..., out_features), and apply an activation; ``decode`` changes nothing here."""
        return ops.quantized_linear(
            x, self.weight, self.out_features, self.scheme, self.bias, activation, out_dtype=out_dtype
        )

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.in_features}, {self.out_features}, {self.scheme!r}, bias={self.bias is not None}"
