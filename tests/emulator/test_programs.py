"""Small whole kernels beside NumPy (kernels/programs.cu); a program with its host code (kernels/host_program.cu)."""

import os
import subprocess

import numpy as np
import pytest

from tests.emulator import exact
from tests.emulator.exact import BF16, F32

arches = pytest.mark.parametrize("arch", [80, 90])


def horner(coefficients, x, terms):
    """The pattern of the polynomial, rounded at each step."""
    y = 0
    for c in coefficients[:terms][::-1]:
        y = exact.fma(F32.value(y), x, float(c), F32)
    return F32.value(y)


@arches
def test_functions_that_are_not_inlined(device, built, arch):
    """Called from diverged lanes, one through another, on registers and arguments of their own."""
    for seed in (1, 2, 3):
        x, out = np.random.default_rng(seed).normal(size=128).astype(np.float32), np.zeros(128, np.float32)
        module = device(arch=arch, seed=seed).load(built / f"programs.sm_{arch}.ptx")
        module.launch("calls", args=[out, x], readonly=[x])
        for i, v in enumerate(x.tolist()):
            both = exact.add(horner(x, v, 4), horner(x, -v, 4), F32)
            want = F32.encode(horner(x, v, 3)) if i % 3 else both
            assert out.view(np.uint32)[i] == want, (i, v)


@arches
def test_atomics_of_several_blocks_lose_nothing(device, built, arch):
    """On floats and pairs of bfloat16: whole numbers, so that the order of the sums does not matter."""
    # sm_80 adds such pairs by compare-and-swap, and CUDA's header makes the first read of its loop a plain one.
    checks = {"check_global": int(arch >= 90), "check_order": 0}
    for seed in (1, 2, 3):
        x, out = np.arange(32, dtype=np.float32), np.zeros(12, np.float32)
        module = device(arch=arch, seed=seed, **checks).load(built / f"programs.sm_{arch}.ptx")
        module.launch("atomics", grid=3, block=32, args=[out, x], readonly=[x])
        assert out[:4].tolist() == [3 * x[i::4].sum() for i in range(4)]
        assert out.view(np.int32)[8] == 95
        assert out.view(np.uint16)[18:20].tolist() == [BF16.encode(96.0), BF16.encode(192.0)]
        assert not out[4:8].any() and not out[10:].any()


CONFIGURATION, VALUE, CLUSTER = (f"cudaErrorInvalid{what}" for what in ("Configuration", "Value", "ClusterSize"))
REFUSED = {
    "no blocks": CONFIGURATION,
    "a grid too high": CONFIGURATION,
    "no threads": CONFIGURATION,
    "1025 threads": CONFIGURATION,
    "65 threads deep": CONFIGURATION,
    "more threads than the kernel is made for": CONFIGURATION,
    "more shared memory than without asking, with what is static": VALUE,
    "a cluster that does not divide the grid": CLUSTER,
    "a cluster of 16 without asking": CLUSTER,
    "asking for more shared memory than there is": VALUE,
    "all shared memory, asked for": "cudaSuccess",
    "a cluster of 16, asked for": "cudaSuccess",
    "a cooperative launch of more blocks than fit": "cudaErrorCooperativeLaunchTooLarge",
}


@pytest.mark.parametrize("arch", ["80", "86", "90"])
def test_a_program_and_its_host_code(built, arch):
    """Its results, the error of each launch that no device takes, and a fault with its line."""
    environment = {**os.environ, "PYGPT_EMULATOR_ARCH": arch}
    done = subprocess.run([built / "host_program"], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0] == "0 wrong, no error"
    expected = dict(REFUSED)
    if arch != "90":  # has no clusters
        expected["a cluster of 16, asked for"] = CLUSTER
    assert dict(line.split(": ") for line in lines[1:-2]) == expected
    assert lines[-2].startswith("cudaErrorLaunchFailure: scale(float*, float const*, int): block (7,0,0) warp 3 lane 8")
    assert lines[-2].endswith("global access of 4 bytes at offset 4000 of 4000 bytes of device memory")
    assert "host_program.cu:" in lines[-1]
