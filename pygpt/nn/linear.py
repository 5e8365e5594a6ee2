"""The affine map as a module."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from pygpt import ops


class Linear(nn.Module):
    """``pygpt.ops.linear`` with its parameters: ``x W^T + b``.

    Args:
        in_features: size of the last dimension of the input.
        out_features: size of the last dimension of the output.
        bias: whether there is a ``b``.
        device: where the parameters are made.
        dtype: of the parameters.

    Attributes:
        packed_weight: what `pygpt.ops.pack_linear` made of ``weight``, for as long as that does not change; else None.

    The keys of the state dict are `torch.nn.Linear`'s: ``weight`` (out_features, in_features), ``bias``
    (out_features,). So is the initialisation.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.packed_weight: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias uniformly from ±1 / sqrt(in_features)."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, decode: bool = False) -> Tensor:
        """Map (..., in_features) to (..., out_features); ``decode`` as in `pygpt.ops.linear`."""
        return ops.linear(x, self.weight, self.bias, packed_weight=self.packed(), decode=decode)

    def __getstate__(self) -> dict[str, Any]:
        # Of copies and pickles, whose weights may change.
        return {**self.__dict__, "packed_weight": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Linear:
        # Where the weight is parametrised, as adapters do it, torch would copy without the above.
        copied = self.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(Linear.__getstate__(self), memo)
        return copied

    def packed(self) -> Tensor | None:
        """``packed_weight`` where it is of use: autocast computes with a cast weight, which is another."""
        packed = self.packed_weight
        return None if packed is None or torch.is_autocast_enabled(packed.device.type) else packed

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
