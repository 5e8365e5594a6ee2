"""What the build made: the extension's dependencies, the symbols of its objects, and the CUDA option."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sysconfig
from pathlib import Path

import pytest

from pygpt.extension import C

ROOT = Path(__file__).resolve().parent.parent
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "avx512_vnni")  # in the order of csrc/cpu/features.h
SYSTEM_LIBRARY = re.compile(r"(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux[-\w]*)\.so(\.\d+)?")


def needed_libraries(elf: bytes) -> list[str]:
    """The DT_NEEDED entries of a 64-bit little-endian shared object (ELF specification, "Dynamic Section")."""
    assert elf[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    sections, (width, count) = struct.unpack_from("<Q", elf, 0x28)[0], struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, sections + i * width) for i in range(count)]
    _, _, _, _, offset, size, strings_index, *_ = next(h for h in headers if h[1] == 6)  # SHT_DYNAMIC
    strings = headers[strings_index][4]
    entries = struct.iter_unpack("<QQ", elf[offset : offset + size])
    names = [strings + value for tag, value in entries if tag == 1]  # DT_NEEDED
    return [elf[name : elf.index(b"\0", name)].decode() for name in names]


def test_the_extension_needs_the_system_alone() -> None:
    """No libtorch, no BLAS, no dynamic CUDA runtime, no driver: one build for any torch, with or without a GPU."""
    libraries = needed_libraries(Path(C.__file__).read_bytes())
    assert any(name.startswith("libc.so") for name in libraries)
    assert [name for name in libraries if not SYSTEM_LIBRARY.fullmatch(name)] == []


def symbols(file: Path, *options: str) -> list[str]:
    """The demangled names of the symbols that ``nm`` lists."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    listing = subprocess.run([nm, "-C", *options, str(file)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[0-9a-f]+ \S (.*)$", listing, flags=re.MULTILINE)


def test_the_extension_exports_its_entry_alone() -> None:
    """Two extensions in one process share nothing by accident."""
    assert symbols(Path(C.__file__), "-D", "--defined-only") == ["PyInit__C"]


@pytest.mark.parametrize("isa", ISAS)
def test_kernel_objects_define_functions_of_their_instruction_set_alone(isa: str) -> None:
    """The linker keeps one of several inline functions of a name; it must never be one with foreign instructions."""
    builds = sorted((ROOT / "build").glob("*/CMakeFiles"), key=lambda folder: folder.stat().st_mtime)
    objects = sorted(builds[-1].glob(f"kernels_{isa}.dir/**/*.o")) if builds else []
    if not objects:
        pytest.skip("no build folder in this checkout" if not builds else f"this build has no {isa} kernels")
    own = f"<(pygpt::cpu::Isa){ISAS.index(isa)}"
    for file in objects:
        # DW.ref.*: the compiler's own pointer to the C++ exception handler, data and the same everywhere.
        names = [name for name in symbols(file, "--defined-only", "--extern-only") if not name.startswith("DW.ref.")]
        assert names, file
        assert [name for name in names if own not in name] == [], file


def test_cuda_architectures_or_the_reason_for_none() -> None:
    build = C.build()
    assert bool(build["cuda_code"]) != bool(build["cuda_absent"]), build
    for code in filter(None, build["cuda_code"].split(";")):
        assert re.fullmatch(r"(sm|compute)_\d+[a-z]?", code)
    devices, why_none = C.cuda_devices()
    assert bool(devices) != bool(why_none)


def configure(folder: Path, nvcc_script: str | None, cuda: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Configure a project that asks for CUDA alone, where nvcc is the given shell script; None: the machine's."""
    # This environment's, which need not be active, before the system's.
    cmake = shutil.which("cmake", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    if cmake is None:
        pytest.skip("cmake is not installed")
    if nvcc_script is not None:
        (folder / "nvcc").write_text(f"#!/bin/sh\n{nvcc_script}\n")
        (folder / "nvcc").chmod(0o755)
        options = (f"-DPYGPT_NVCC={folder / 'nvcc'}", *options)
    (folder / "CMakeLists.txt").write_text(
        f'cmake_minimum_required(VERSION 3.31)\nproject(probe LANGUAGES CXX)\ninclude("{ROOT}/cmake/cuda.cmake")\n'
        'message(STATUS "CUDA part: ${PYGPT_CUDA_BUILD}; ${PYGPT_CUDA_CODE}; sm_90a ${PYGPT_CUDA_SM90A}")\n'
    )
    command = [cmake, "-S", str(folder), "-B", str(folder / "build"), f"-DPYGPT_CUDA={cuda}", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_cuda_that_cannot_be_used_is_said_in_one_line_and_left_out(tmp_path: Path) -> None:
    script = 'test "$1" = --list-gpu-arch && echo compute_90 && exit; echo "nvcc fatal : unsupported host"; exit 1'
    result = configure(tmp_path, script, "AUTO")
    assert result.returncode == 0, result.stderr
    assert "CUDA part: OFF" in result.stdout
    words = " ".join(result.stderr.split())
    assert "building for the CPU alone" in words
    assert "nvcc fatal : unsupported host" in words


def test_cuda_that_cannot_be_used_is_an_error_where_it_is_demanded(tmp_path: Path) -> None:
    result = configure(tmp_path, "echo broken; exit 1", "ON")
    assert result.returncode != 0
    assert "CUDA cannot be used" in " ".join(result.stderr.split())


def test_cuda_off_is_taken_at_its_word(tmp_path: Path) -> None:
    result = configure(tmp_path, "touch was_run", "OFF")
    assert result.returncode == 0, result.stderr
    assert "PYGPT_CUDA is OFF" in result.stdout
    assert not list(tmp_path.rglob("was_run"))


@pytest.mark.parametrize(
    ("architectures", "codes"),
    [
        ("80-real", ["compute_80,code=sm_80"]),
        ("86", ["compute_86,code=sm_86"]),
        (
            "80-real;90a-real;80-virtual",
            ["compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_80,code=compute_80"],
        ),
        (
            "",
            ["compute_80,code=sm_80", "compute_90,code=sm_90", "compute_120,code=sm_120", "compute_80,code=compute_80"],
        ),
    ],
)
def test_nvcc_is_asked_for_the_architectures_of_the_option(
    tmp_path: Path, architectures: str, codes: list[str]
) -> None:
    known = "compute_75 compute_80 compute_90 compute_100 compute_103 compute_120 compute_121"
    script = f'test "$1" = --list-gpu-arch && printf "%s\\n" {known} && exit; echo "$@" > "{tmp_path}/asked"; exit 1'
    configure(tmp_path, script, "AUTO", f"-DPYGPT_CUDA_ARCHITECTURES={architectures}")
    asked = (tmp_path / "asked").read_text().split()
    assert [word.removeprefix("-gencode=arch=") for word in asked if word.startswith("-gencode")] == codes


def test_what_is_configured_is_what_the_option_says(tmp_path: Path) -> None:
    result = configure(tmp_path, None, "AUTO", "-DPYGPT_CUDA_ARCHITECTURES=80;90-real")
    if "CUDA part: OFF" in result.stdout:
        pytest.skip("there is no nvcc that can be used")
    assert "CUDA part: ON; sm_80;compute_80;sm_90;sm_90a; sm_90a ON" in result.stdout, result.stdout + result.stderr
