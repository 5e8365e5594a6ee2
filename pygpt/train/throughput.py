"""How fast a training runs beside what the machine could do: arithmetic per token over measured peak arithmetic."""

import time

import torch

from pygpt.machine import peak_arithmetic
from pygpt.models import GPTConfig
from pygpt.models.config import GATED


def flops_per_token(config: GPTConfig) -> float:
    """Floating-point operations that training needs per token, forward and backward, a multiply-add counted as two.

    3 · (2 · weights + 4 · heads · head_dim · Σ over layers of the keys a query sees on average), where weights are
    those that tokens are multiplied with: projections, feed-forward network and head, not the embedding tables. The 3
    stands for the forward pass and a backward pass of twice its cost; recomputation is not counted.

    Source: Chowdhery et al., "PaLM", 2022, appendix B, with the half of the scores that causality hides left out.
    """
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    matrices = 3 if config.activation in GATED else 2
    block = config.embedding_dim * (2 * heads + 2 * kv_heads) + matrices * config.embedding_dim * config.hidden_dim
    weights = config.num_layers * block + config.embedding_dim * config.vocab_size
    seen = sum(_average_keys(config.context_length, config.window(layer)) for layer in range(config.num_layers))
    return 3 * (2 * weights + 4 * heads * seen)


def measure_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of ``dtype`` that the device can do at most.

    On the CPU what its registers allow, see :func:`pygpt.machine.peak_arithmetic`; on CUDA what the best of a few large
    matrix products reaches, which is near what its tensor cores allow.
    """
    if device.type == "cpu":
        return peak_arithmetic(dtype)
    size = 8192
    x = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(x, x)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _average_keys(time: int, window: int | None) -> float:
    """How many keys a query sees on average in a causal sequence of ``time`` tokens."""
    reach = time if window is None else min(window, time)
    return (reach * (reach + 1) / 2 + (time - reach) * reach) / time
