"""The GPU under the benchmark, and the most it can do, measured: what "of limit" means there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from pygpt.extension import C

COPIED_BYTES = 2**30
PRODUCT_SIZE = 8192  # of square matrices


def in_use() -> bool:
    """Whether cases are drawn on a GPU."""
    return torch.get_default_device().type == "cuda"


def ops() -> set[str]:
    """The ops that have kernels for the GPU that is here."""
    tables = C.implementations()
    return {op for op, entries in tables if any(name.startswith("cuda") and not reason for name, reason in entries)}


def description() -> dict[str, Any]:
    """What belongs to a result that was measured here."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "gpu_memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
    }


@functools.cache
def memory_bandwidth() -> float:
    """Bytes per second that a copy of 1 GiB reads and writes."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source))


@functools.cache
def peak_arithmetic(dtype: torch.dtype) -> float:
    """Operations per second of torch's product of two random matrices; a multiply-add counts as two."""
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(dtype) for _ in range(2))
    return 2 * PRODUCT_SIZE**3 / _seconds(lambda: a @ b)


def _seconds(call: Callable[[], Any], rounds: int = 20) -> float:
    """The least time of a call."""
    call()
    best = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
