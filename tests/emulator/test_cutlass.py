"""Kernels that nobody here wrote: CUTLASS's GEMMs run right on the emulated device, and no race is reported."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.device import BUILD
from tests.emulator.exact import BF16

pytestmark = pytest.mark.nightly
ROOT = Path(__file__).resolve().parents[2]

WARP_SPECIALISED = ("KernelTmaWarpSpecialized", "TmaWarpSpecialized", 64)
PING_PONG = ("KernelTmaWarpSpecializedPingpong", "TmaWarpSpecialized", 64)
COOPERATIVE = ("KernelTmaWarpSpecializedCooperative", "TmaWarpSpecializedCooperative", 128)
K_MAJOR, MN_MAJOR = ("RowMajor", "ColumnMajor"), ("ColumnMajor", "RowMajor")  # layouts of A and B

CONFIGURATIONS = {
    "sm80": (None, 1, K_MAJOR),
    "sm80-mn": (None, 1, MN_MAJOR),
    "warp-specialised": (WARP_SPECIALISED, 1, K_MAJOR),
    "ping-pong": (PING_PONG, 1, K_MAJOR),
    "ping-pong-2x1": (PING_PONG, 2, K_MAJOR),
    "cooperative": (COOPERATIVE, 1, K_MAJOR),
    "cooperative-2x1": (COOPERATIVE, 2, K_MAJOR),
    "cooperative-mn-2x1": (COOPERATIVE, 2, MN_MAJOR),
}
SHAPES = [(128, 128, 64), (256, 256, 192), (200, 136, 72), (8, 8, 8), (328, 264, 136)]  # whole tiles, then edges


def compile_gemm(folder: Path, schedule, cluster: int, layouts) -> Path:
    """A library with gemm(), linked with the emulator instead of the CUDA runtime."""
    found = importlib.util.find_spec("cutlass_library")
    if found is None:
        pytest.skip("needs CUTLASS's headers: pip install nvidia-cutlass, the extra [emulator]")
    source = Path(found.submodule_search_locations[0]) / "source"
    arch = "90a" if schedule else "80"
    definitions = [f"-DLAYOUT_A={layouts[0]}", f"-DLAYOUT_B={layouts[1]}"]
    if schedule:
        name, epilogue, tile = schedule
        definitions += [f"-DSCHEDULE={name}", f"-DEPILOGUE={epilogue}", f"-DTILE_M={tile}", f"-DCLUSTER_M={cluster}"]
    nvcc = shutil.which("nvcc")
    kernels = Path(__file__).parent / "kernels" / "cutlass_gemm.cu"
    flags = [
        "-std=c++17",
        "-O2",
        "-lineinfo",
        "--expt-relaxed-constexpr",
        "-DNDEBUG",
        "-Xcompiler=-fPIC,-fvisibility=hidden",
    ]
    flags += [f"-gencode=arch=compute_{arch},code=compute_{arch}", "--no-compress", "-cudart=none", "-w"]
    includes = [f"-I{source / 'include'}", f"-I{source / 'tools' / 'util' / 'include'}"]
    subprocess.run(
        [nvcc, *flags, *definitions, *includes, "-c", str(kernels), "-o", str(folder / "gemm.o")], check=True
    )
    library = folder / "libgemm.so"
    link = [
        "g++",
        "-shared",
        str(folder / "gemm.o"),
        str(BUILD / "libpygpt_emulator.a"),
        "-Wl,-Bsymbolic",
        "-o",
        str(library),
    ]
    subprocess.run(link, check=True)
    return library


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gemm(built, tmp_path, name):
    """Against float64; in a process of its own, since the emulator's options are a process's."""
    schedule, cluster, layouts = CONFIGURATIONS[name]
    library = compile_gemm(tmp_path, schedule, cluster, layouts)
    # CUTLASS's sm_80 mainloop reads rows past the edge that no copy has filled; their products are dropped.
    # It declares less alignment for dynamic shared memory than its tensor copies need.
    settings = {"ARCH": "90" if schedule else "80", "CHECK_INIT": "1" if schedule else "0", "CHECK_ALIGNMENT": "0"}
    for shape in SHAPES:
        for seed in ("1", "2"):
            environment = {f"PYGPT_EMULATOR_{k}": v for k, v in {**settings, "SEED": seed}.items()}
            command = [sys.executable, "-m", __name__, str(library), *map(str, shape), *layouts]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{shape}, seed {seed}: {done.stdout}{done.stderr}"


def check(library: str, m: int, n: int, k: int, layout_a: str, layout_b: str) -> None:
    rng = np.random.default_rng(m * n + k)
    a, b, c = rng.normal(size=(m, k)), rng.normal(size=(k, n)), rng.normal(size=(m, n)).astype(np.float32)
    bits = [np.vectorize(BF16.encode, otypes=[np.uint16])(x) for x in (a, b)]
    exact_a, exact_b = ((x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in bits)
    stored = [
        np.ascontiguousarray(x if layout == "RowMajor" else x.T)
        for x, layout in zip(bits, (layout_a, layout_b), strict=True)
    ]
    d = np.full((m, n), np.nan, np.float32)
    gemm = ctypes.CDLL(library).gemm
    gemm.restype = ctypes.c_char_p
    error = gemm(m, n, k, *(ctypes.c_void_p(x.ctypes.data) for x in (*stored, c, d)))
    assert error is None, error.decode()
    want = exact_a @ exact_b + c
    worst = np.abs(d - want).max()
    assert worst <= 4 * np.finfo(np.float32).eps * np.abs(want).max() * np.sqrt(k), worst


if __name__ == "__main__":
    check(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
