"""What ptxas made of the CUDA kernels of this build: registers, and no memory of a thread's own.

``pytest -rP tests/test_machine_code.py`` prints the table. Needs cuobjdump, of a CUDA toolkit or of the package
nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import os
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


@pytest.fixture
def tool() -> str:
    """The path of cuobjdump."""
    if absent := C.build()["cuda_absent"]:
        pytest.skip(f"this build has no machine code: {absent}")
    path = cuobjdump()
    if path is None:
        pytest.skip("needs cuobjdump, of a CUDA toolkit or of the package nvidia-cuda-cuobjdump")
    return path


def test_kernels_keep_to_registers(tool: str) -> None:
    found = resources_of(C.__file__, tool)
    assert {each.architecture for each in found} >= {"sm_80", "sm_90"}
    for each in sorted(found, key=lambda each: (each.architecture, -each.registers)):
        print(f"{each.architecture:8} {each.registers:4} registers {each.shared:6} shared  {name_of(each.kernel)}")
    assert [(each.architecture, name_of(each.kernel), each.stack) for each in found if each.stack] == []
    assert max(each.registers for each in found) <= MAX_REGISTERS


def instructions_of(file: str | Path, tool: str, architecture: str) -> dict[str, list[str]]:
    """The machine code of each kernel: opcodes with their modifiers, in order."""
    beside = {"PATH": f"{Path(tool).parent}:{os.environ.get('PATH', '')}"}
    command = [tool, "-sass", "-arch", architecture, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **beside})
    if "nvdisasm" in done.stderr + done.stdout:
        pytest.skip("needs nvdisasm, of a CUDA toolkit or of the package nvidia-cuda-nvdisasm")
    found: dict[str, list[str]] = {}
    kernel = ""
    for line in done.stdout.splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            kernel = match[1]
            found[kernel] = []
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)", line):
            found[kernel].append(match[1])
    return found


def test_products_on_hopper_are_made_of_its_instructions(tool: str) -> None:
    """wgmma, fed by tensor copies, and several of them under way at a time: ptxas has not put a wait after each."""
    kernels = {k: v for k, v in instructions_of(C.__file__, tool, "sm_90a").items() if "product_sm90" in k}
    assert kernels
    for kernel, opcodes in kernels.items():
        counts = {name: sum(code.startswith(name) for code in opcodes) for name in ("HGMMA", "WARPGROUP.DEPBAR")}
        assert counts["HGMMA"] == 4, name_of(kernel)  # of a step
        assert counts["WARPGROUP.DEPBAR"] == 2, name_of(kernel)  # for the step before, and after the last
        for name in ("UTMALDG", "UTMASTG", "USETMAXREG", "STSM"):
            assert any(code.startswith(name) for code in opcodes), f"{name_of(kernel)} has no {name}"


@pytest.mark.parametrize("name", ["forward", "backward_fused", "backward_keys", "backward_queries"])
def test_attention_on_hopper_is_made_of_its_instructions(tool: str, name: str) -> None:
    """As above: with a wait after each wgmma there would be as many of these."""
    kernels = {k: v for k, v in instructions_of(C.__file__, tool, "sm_90a").items() if f"attention_{name}_sm90" in k}
    assert kernels
    for kernel, opcodes in kernels.items():

        def count(beginning: str, opcodes: list[str] = opcodes) -> int:
            return sum(code.startswith(beginning) for code in opcodes)

        assert count("HGMMA") >= 4 * count("WARPGROUP.DEPBAR") > 0, name_of(kernel)
        assert count("UTMALDG") >= 4 and count("USETMAXREG") == 2, name_of(kernel)
        assert count("LDL") == count("STL") == 0, name_of(kernel)
