"""What takes long and seldom breaks: other versions of torch, another processor. Run with ``pytest -m nightly``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.nightly


def run(*command: str | Path, **options: object) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, f"{command}:\n{result.stdout[-5000:]}\n{result.stderr[-5000:]}"
    return result.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.parametrize("torch", ["torch==2.6.0", "torch"], ids=["oldest", "newest"])
def test_one_wheel_runs_beside_the_oldest_and_the_newest_torch(torch, wheel, tmp_path):
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", torch, f"{wheel}[test]")
    out = run(tmp_path / "venv/bin/pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", cwd=ROOT)
    assert " passed" in out


def test_a_wheel_holds_nothing_of_the_emulated_device(wheel):
    """Neither the module nor a part of it: what it says of faults, as a mark of its code."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if "emulat" in name.lower() or name.startswith("tests")]
        (module,) = [name for name in names if name.startswith("pygpt/_C.") and not name.endswith(".pyi")]
        for mark in (b"pygpt emulator: ", b"is not emulated"):
            assert mark not in archive.read(module)


def test_the_scalar_kernels_build_for_aarch64(tmp_path):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("aarch64-linux-gnu-g++ is not installed (Debian: g++-aarch64-linux-gnu)")
    run(
        *("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DPYGPT_CUDA=OFF"),
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
        f"-Dpybind11_DIR={run(sys.executable, '-m', 'pybind11', '--cmakedir').strip()}",
    )
    run("cmake", "--build", tmp_path, "--target", "pygpt_kernels", "kernels_scalar")
