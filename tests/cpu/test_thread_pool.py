"""The thread pool under everything a Python program does to it."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from pygpt import ops
from tests.support import THREAD_COUNTS, assert_same_bits, normal, on_the_cpu, threads


def run_python(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=timeout, check=False
    )


def test_results_do_not_depend_on_the_thread_count(generator):
    x, weight = normal(generator, 500, 64), normal(generator, 64)
    with threads(1):
        expected = ops.layer_norm(x, weight)
    for count in (*THREAD_COUNTS, 64, 1):
        with threads(count):
            assert_same_bits(expected, ops.layer_norm(x, weight), f"{count} threads")


UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())  # FE_UPWARD of <fenv.h>


@on_the_cpu
@pytest.mark.skipif(UPWARD is None, reason="another number stands for FE_UPWARD on this processor")
def test_results_do_not_depend_on_the_callers_floating_point_mode_which_comes_back(generator):
    x, weight, small = normal(generator, 500, 64), normal(generator, 64, 64), torch.tensor(1e-40)
    c_library = ctypes.CDLL(None)

    def results():
        return ops.layer_norm(x, weight[0]), ops.linear(x, weight), ops.attention(*[x.view(1, 50, 10, 64)] * 3)

    expected = results()
    for count in (1, 3):
        with threads(count):
            assert torch.set_flush_denormal(True)
            assert c_library.fesetround(UPWARD) == 0
            try:
                found = results()
                mode = c_library.fegetround()
                flushed = float(small * 1)
            finally:
                c_library.fesetround(0)
                torch.set_flush_denormal(False)
            assert (mode, flushed) == (UPWARD, 0)
            for a, b in zip(expected, found, strict=True):
                assert_same_bits(a, b, f"rounded upwards by the caller, {count} threads")


def test_calls_from_several_python_threads(generator):
    x, weight = normal(generator, 700, 64), normal(generator, 64)
    expected = ops.layer_norm(x, weight)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                assert_same_bits(expected, ops.layer_norm(x, weight), "concurrent call")
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    assert not failures


def test_kernels_release_the_gil(generator):
    x, weight = normal(generator, 60_000, 1024), normal(generator, 1024)
    ops.layer_norm(x, weight)
    done = threading.Event()
    counted = 0

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1
            time.sleep(0)  # lets the other thread have the GIL

    counter = threading.Thread(target=count)
    before = sys.getswitchinterval()
    sys.setswitchinterval(30)  # nobody is made to give up the GIL: the counter runs only where this thread lets it
    try:
        with threads(1):
            counter.start()
            counted = 0
            ops.layer_norm(x, weight)
            during = counted
    finally:
        done.set()
        sys.setswitchinterval(before)
    counter.join()
    assert during > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_computes(generator):
    x, weight = normal(generator, 500, 64), normal(generator, 64)
    expected = ops.layer_norm(x, weight)
    result = torch.zeros_like(expected).share_memory_()
    child = os.fork()
    if child == 0:
        result.copy_(ops.layer_norm(x, weight))
        os._exit(0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        pytest.fail("the forked child hangs")
    assert status == 0
    assert_same_bits(expected, result, "forked child")
    assert_same_bits(expected, ops.layer_norm(x, weight), "parent after the fork")


def test_the_interpreter_exits_while_workers_live():
    # The daemon thread calls the extension itself: torch's own functions abort the process in this situation.
    code = """
        import threading, torch
        from pygpt.extension import C
        torch.set_num_threads(7)
        def run():
            x, weight, out = torch.ones(5000, 256), torch.ones(256), torch.empty(5000, 256)
            while True:
                C.layer_norm_forward(x, None, weight, None, 1e-5, out, None, None, None)
                yield
        def forever():
            for _ in run():
                pass
        threading.Thread(target=forever, daemon=True).start()
        calls = run()
        for _ in range(50):
            next(calls)
        print("end")
    """
    for _ in range(3):
        result = run_python(code)
        assert result.returncode == 0, result.stderr
        assert result.stdout == "end\n"


@pytest.mark.slow
def test_more_threads_than_cores_cost_little(generator):
    """16 threads on 2 cores take at most 3 times as long as 2 (a promise of the pool, not a measure of speed)."""
    x, weight = normal(generator, 4096, 768), normal(generator, 768)

    def seconds(count: int) -> float:
        with threads(count):
            times = []
            for _ in range(30):
                start = time.perf_counter()
                ops.layer_norm(x, weight)
                times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    ratios = [seconds(16) / seconds(2) for _ in range(5)]
    assert min(ratios) < 3, ratios


def test_an_idle_pool_sleeps():
    code = """
        import time, torch
        from pygpt import ops
        x, weight = torch.ones(5000, 256), torch.ones(256)
        torch.set_num_threads(2)
        ops.layer_norm(x, weight)
        before = time.process_time()
        time.sleep(1.0)
        print(time.process_time() - before)
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.1
