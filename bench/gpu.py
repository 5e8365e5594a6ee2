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


def seconds_of_work(call: Callable[[], Any], repeats: int) -> Callable[[], float]:
    """A measurement of what the GPU itself takes for a call: it replays a recording of ``repeats`` of them.

    A call that waits for the GPU cannot be recorded, and is measured as it is.
    """
    run = _recorded(call, repeats) or (lambda: [call() for _ in range(repeats)])
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def measure() -> float:
        run()  # warms up the caches, and keeps the GPU busy while the next is handed over
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    return measure


def _recorded(call: Callable[[], Any], repeats: int) -> Callable[[], Any] | None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(repeats):
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


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
