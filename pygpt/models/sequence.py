"""Where tokens stand: positions, and what lies past a row's length."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoids(time: int, width: int) -> Tensor:
    """Positions as sines and cosines, (time, width) float64: ``sin(t / 10000^(2i / width))`` at 2i, cos at 2i + 1.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    pair = torch.arange(width, dtype=torch.float64) // 2
    angle = torch.arange(time, dtype=torch.float64).unsqueeze(1) / 10000 ** (2 * pair / width)  # (T, C)
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos())


def past_lengths(ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """Which positions lie past their row's length, (B, T) bool; None if there are no lengths."""
    return None if lengths is None else torch.arange(ids.shape[1], device=ids.device) >= lengths.unsqueeze(1)


def document_positions(time: int, cu_seqlens: Tensor | None, device: torch.device) -> Tensor:
    """The position of each token in its document, (T,)."""
    positions = torch.arange(time, device=device)
    if cu_seqlens is None:
        return positions
    document = torch.searchsorted(cu_seqlens, positions, right=True) - 1
    return positions - cu_seqlens[document]


def check_ids(
    ids: Tensor, limit: int | None, lengths: Tensor | None, name: str = "ids", lengths_name: str = "lengths"
) -> None:
    """Refuse ids and lengths that do not fit a model; values are looked at on the CPU only, where that costs no wait.

    Args:
        ids: (batch, time) int64.
        limit: the most positions of a row; None: any number.
        lengths: (batch,) int64, 0 to time; None: there are none.
        name: of the ids, in errors.
        lengths_name: of the lengths, in errors.

    Raises:
        TypeError: if ``ids`` is no int64 tensor, or ``lengths`` no tensor.
        ValueError: if a shape or a length does not fit.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be a tensor, not a {type(ids).__name__}")
    if ids.dim() != 2:
        raise ValueError(f"{name} must have shape (batch, time), not {tuple(ids.shape)}")
    if ids.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, not {ids.dtype}")
    batch, time = ids.shape
    if limit is not None and time > limit:
        raise ValueError(f"context_length is {limit}, but {name} has {time} positions; shorten it")
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{lengths_name} must be a tensor, not a {type(lengths).__name__}")
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"{lengths_name} must be int64 of shape ({batch},), not {lengths.dtype} {tuple(lengths.shape)}"
        )
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return  # the rest depends on values, which would have to be waited for
    if batch and (int(lengths.min()) < 0 or int(lengths.max()) > time):
        raise ValueError(f"{lengths_name} must be at least 0 and at most {time}, but is {lengths.tolist()}")


def check_shape(name: str, tensor: Tensor, ids: Tensor) -> None:
    """Refuse what is no int64 tensor of the shape of ids. Raises: TypeError, ValueError."""
    for each, value in (("ids", ids), (name, tensor)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{each} must be a tensor, not a {type(value).__name__}")
    if tensor.shape != ids.shape:
        raise ValueError(f"{name} must have the shape of ids, {tuple(ids.shape)}, not {tuple(tensor.shape)}")
    if tensor.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, not {tensor.dtype}")
