"""Whether a model's parameters fit into memory, asked before they are made."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def check_fits(parameters: int, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a model whose parameters do not fit into the device's free memory.

    Raises:
        MemoryError: with both figures.
    """
    size = dtype.itemsize
    check_bytes_fit(parameters * size, device, f"the model's {parameters:,} parameters", f" ({size} bytes each)")


def check_bytes_fit(needed: int, device: torch.device, what: str, how: str = "") -> None:
    """Refuse what does not fit into the device's free memory.

    Raises:
        MemoryError: with both figures.
    """
    free = free_memory(device)
    if free is not None and needed > free:
        raise MemoryError(f"{what} need {needed / 2**30:.1f} GiB{how}, but {device} has {free / 2**30:.1f} GiB free")


def free_memory(device: torch.device) -> int | None:
    """The bytes that can be allocated on a device; None if nobody can say, or it has no memory (``meta``)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_free_on_machine(), _free_in_cgroup(Path("/sys/fs/cgroup"))) if limit is not None]
    return min(limits, default=None)


def _free_on_machine() -> int | None:
    """What programs can still allocate: on Linux this counts file caches, which the kernel gives up when asked."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None  # neither Linux nor a POSIX system that says


def _free_in_cgroup(folder: Path) -> int | None:
    """What a container's limit (cgroup v2) leaves, its file caches not counted as used."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    caches = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
    return max(0, int(limit) - used + caches)
