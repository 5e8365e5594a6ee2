"""Measures of this machine: right in kind, and what every result is held against."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

import pygpt
from pygpt import machine
from pygpt.extension import C
from tests.support import threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_peak_arithmetic_is_what_one_core_can_do(dtype: torch.dtype) -> None:
    """A loop that the compiler dropped would be faster than any core, one that it spilled slower."""
    with threads(1):
        assert 1e9 < machine.peak_arithmetic(dtype, seconds=0.05) < 1e12


def test_every_set_that_runs_measures_float32() -> None:
    for isa, why_not in C.instruction_sets():
        if why_not:
            with pytest.raises(ValueError, match=isa):
                C.measure_arithmetic(isa, "float32", 0.01)
        else:
            assert C.measure_arithmetic(isa, "float32", 0.01) > 1e8


@pytest.mark.cpu
def test_the_peak_is_that_of_the_set_to_which_every_op_is_forced() -> None:
    best = machine.instruction_set(torch.float32)
    for isa, why_not in C.instruction_sets():
        if why_not or isa == "avx512_bf16":  # of which only the ops with matrix products have an implementation
            continue
        with pygpt.force("*", f"cpu_{isa}"):
            assert machine.instruction_set(torch.float32) == isa
            assert machine.instruction_set(torch.bfloat16) == isa
    with pygpt.force("linear", "cpu_scalar"):
        assert machine.instruction_set(torch.float32) == best, "other ops have more"


def test_memory_bandwidth_of_a_cache_is_above_that_of_main_memory() -> None:
    with threads(1):
        cache, memory = C.measure_bandwidth(2**18, 0.05), machine.memory_bandwidth(seconds=0.2)
    assert 1e9 < memory < cache < 1e12


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float64"):
        machine.peak_arithmetic(torch.int64)
    with pytest.raises(ValueError, match="there is no instruction set"):
        C.measure_arithmetic("sse9", "float32", 0.01)
    with pytest.raises(ValueError, match="no multiply-add of bfloat16"):
        C.measure_arithmetic("scalar", "bfloat16", 0.01)
    with pytest.raises(ValueError, match="bytes must be at least 4096 a thread"):
        C.measure_bandwidth(1, 0.01)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")
def test_freed_memory_stays_with_the_process() -> None:
    code = """
import torch
from pathlib import Path
from pygpt.machine import keep_freed_memory

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
torch.zeros(100 << 18).add_(1)
print(resident() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert float(grown) > 90
