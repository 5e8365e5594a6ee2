"""The angles of rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(time: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of each position, (time, head_dim) float64, as `pygpt.ops.rotary` reads them.

    ``cos(t theta^(-2i / head_dim))`` at i, sin behind.

    Source: Su et al., "RoFormer", 2021, eq. 34.
    """
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
    angle = torch.arange(time, dtype=torch.float64).unsqueeze(1) / theta ** (pair / head_dim)  # (T, D / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
