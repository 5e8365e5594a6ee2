"""This machine and the most it can do, measured: what ``pygpt doctor``, the benchmarks and "share of peak" go by.

The measuring loops are C++ (csrc/cpu/measure.h) and run on as many threads as torch uses. Results are kept for the life
of the process, per number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from pathlib import Path

import torch

from pygpt.extension import C


def cpu_name() -> str:
    """The processor's name as it gives it, such as ``AMD EPYC 9654``."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def keep_freed_memory() -> None:
    """Make malloc neither give memory back to the system nor map large blocks of their own (glibc; no-op elsewhere).

    For a process that allocates the same large tensors again and again: a training step of GPT-2's width on two cores
    takes a tenth less time when its pages are not fetched, and filled with zeros, anew in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, most_mapped_blocks = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX in malloc.h
        mallopt(trim_threshold, -1)  # never
        mallopt(most_mapped_blocks, 0)


def memory_bytes() -> int:
    """The size of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def last_level_cache_bytes() -> int:
    """The size of the last cache before main memory; 32 MiB where the system does not say."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        digits, unit = file.read_text().strip()[:-1], file.read_text().strip()[-1]
        sizes.append(int(digits) * {"K": 2**10, "M": 2**20}[unit])
    return max(sizes, default=32 * 2**20)


def instruction_set(dtype: torch.dtype) -> str:
    """The set with the fastest multiply-add of ``dtype`` among those that this build has and this processor runs.

    Without instructions for bfloat16 that is float32's: values are widened, multiplied and added. Where every op is
    forced to one set (``PYGPT_FORCE='*:cpu_avx2'``), none beyond that counts.
    """
    runs: list[str] = [name for name, why_not in C.instruction_sets() if not why_not]
    forced = {C.forced(op) for op, _ in C.implementations()}
    if len(forced) == 1:
        runs = [name for name in runs if f"cpu_{name}" in forced] or runs
    if dtype == torch.float64:
        return "scalar"
    if dtype == torch.bfloat16 and "avx512_bf16" in runs:
        return "avx512_bf16"
    return next(name for name in runs if name != "avx512_bf16")


def peak_arithmetic(dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> float:
    """Operations per second of multiply-adds on registers, on all of torch's threads; a multiply-add counts as two.

    Args:
        dtype: float32, bfloat16 (products summed in float32), or float64 (scalar kernels only).
        seconds: how long to measure.

    Raises:
        ValueError: for any other dtype.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise ValueError(f"dtype must be float32, bfloat16 or float64, but is {dtype}")
    isa = instruction_set(dtype)
    widened = dtype == torch.bfloat16 and isa != "avx512_bf16"
    name = "float32" if widened else str(dtype).removeprefix("torch.")
    return _peak_arithmetic(isa, name, torch.get_num_threads(), seconds)


def memory_bandwidth(seconds: float = 0.5) -> float:
    """Bytes per second read by all of torch's threads from main memory: a buffer of eight last-level caches.

    Args:
        seconds: how long to measure.
    """
    return float(C.measure_bandwidth(max(2**28, 8 * last_level_cache_bytes()), seconds))


# The loop runs on torch's number of threads; it is an argument here to be part of the cache's key.
@functools.cache
def _peak_arithmetic(isa: str, dtype: str, threads: int, seconds: float) -> float:
    return float(C.measure_arithmetic(isa, dtype, seconds))
