"""Rotary positions: queries and keys are turned by an angle that grows with their place."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(time: int, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of each position, (time, head_dim) float64: ``cos(t theta^(-2i / head_dim))`` at i, sin behind.

    Source: Su et al., "RoFormer", 2021, eq. 34.
    """
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64)
    angle = torch.arange(time, dtype=torch.float64).unsqueeze(1) / theta ** (pair / head_dim)  # (T, D / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn elements i and i + head_dim / 2 of each head as one pair.

    Args:
        x: (batch, time, heads, head_dim).
        rotation: (time, head_dim) or (batch, time, head_dim), rows of `rotations`.

    Returns:
        The shape and dtype of ``x``.
    """
    cosine, sine = rotation.unsqueeze(-2).chunk(2, dim=-1)  # (…, T, 1, D / 2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)
