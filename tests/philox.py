"""The random bits of csrc/core/philox.h, written a second time, in NumPy: which elements dropout keeps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DROPOUT, ATTENTION, SAMPLE = 1, 2, 3  # sites
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)


def philox(key: int, counter: np.ndarray) -> np.ndarray:
    """Philox4x32-10 of a 64-bit key and counters (..., 4): words (..., 4). Salmon et al., 2011, section 3.3."""
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for _ in range(10):
        a, b = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), b & _LOW
        c2, c3 = (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1), a & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def kept(key: int, counter: tuple[int, int, int], count: int, p: float) -> np.ndarray:
    """Which of the first ``count`` elements of a row are kept; the counter's words after the block's number."""
    element = np.arange(count)
    counters = np.empty((count, 4), dtype=np.uint32)
    counters[:, 0] = element // 64 * 16 + element % 16
    counters[:, 1:] = counter
    words = philox(key, counters)[element, element // 16 % 4]
    return words >= int(p * 2**32)


def dropout_mask(shape: tuple[int, ...], p: float, seed: int) -> Tensor:
    """What ``ops.dropout`` keeps of a tensor (batch, ...): bool, of its shape."""
    rows = shape[0] if len(shape) > 1 else 1
    width = int(np.prod(shape)) // rows
    mask = np.stack([kept(seed + row, (0, 0, DROPOUT), width, p) for row in range(rows)])
    return torch.from_numpy(mask).view(shape)


def attention_mask(batch: int, heads: int, q_time: int, k_time: int, p: float, seed: int) -> Tensor:
    """Which weights dropout keeps in ``ops.attention``: bool (batch, heads, q_time, k_time)."""
    rows = [
        kept(seed + b, (query, head, ATTENTION), k_time, p)
        for b in range(batch)
        for head in range(heads)
        for query in range(q_time)
    ]
    return torch.from_numpy(np.stack(rows)).view(batch, heads, q_time, k_time)
