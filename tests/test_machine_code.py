"""What ptxas made of the CUDA kernels of this build: registers, and no memory of a thread's own.

``pytest -rP tests/test_machine_code.py`` prints the table. Needs cuobjdump, of a CUDA toolkit or of the package
nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pygpt.extension import C

MAX_REGISTERS = 255  # of a thread, on every architecture


@dataclass(frozen=True)
class Resources:
    architecture: str
    kernel: str
    registers: int
    stack: int  # bytes of a thread: spilled registers and arrays that are indexed at run time
    shared: int  # bytes of a block, without dynamic shared memory


def cuobjdump() -> str | None:
    packaged = [tool for path in sys.path for tool in Path(path).glob("nvidia/*/bin/cuobjdump")]
    beside_nvcc = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve().parent / "cuobjdump"
    return shutil.which("cuobjdump") or next((str(tool) for tool in [beside_nvcc, *packaged] if tool.is_file()), None)


def resources_of(file: str | Path, tool: str) -> list[Resources]:
    listing = subprocess.run([tool, "-res-usage", str(file)], capture_output=True, text=True, check=True).stdout
    found, architecture, kernel = [], "", ""
    for line in listing.splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            found.append(Resources(architecture, kernel, registers, stack + local, shared))
    return found


def name_of(symbol: str) -> str:
    """Op, direction and template arguments of a kernel, out of its mangled name."""
    demangled = symbol
    if tool := shutil.which("c++filt"):
        demangled = subprocess.run([tool, symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"pygpt::cuda::|\(anonymous namespace\)::|^void |\(.*", "", demangled)


def test_kernels_keep_to_registers() -> None:
    if absent := C.build()["cuda_absent"]:
        pytest.skip(f"this build has no machine code: {absent}")
    tool = cuobjdump()
    if tool is None:
        pytest.skip("needs cuobjdump, of a CUDA toolkit or of the package nvidia-cuda-cuobjdump")
    found = resources_of(C.__file__, tool)
    assert {each.architecture for each in found} >= {"sm_80", "sm_90"}
    for each in sorted(found, key=lambda each: (each.architecture, -each.registers)):
        print(f"{each.architecture:8} {each.registers:4} registers {each.shared:6} shared  {name_of(each.kernel)}")
    assert [(each.architecture, name_of(each.kernel), each.stack) for each in found if each.stack] == []
    assert max(each.registers for each in found) <= MAX_REGISTERS
