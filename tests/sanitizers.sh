#!/usr/bin/env bash
# tests/sanitizers.sh FOLDER: builds the kernels into FOLDER with GCC's sanitizers and runs them.
# address + undefined behaviour: the op tests, in Python; threads: tests/cpu/driver.cpp, without Python.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
folder=$(realpath "$1")

# A virtual environment that sees the instrumented pygpt, then the packages of this one, but not its (perhaps editable)
# pygpt.
python -m venv --without-pip "$folder/venv"
python -c "import sys; print('\n'.join(['$folder/address', *(p for p in sys.path if p.endswith('-packages'))]))" \
    >"$("$folder/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/outer.pth"
rm -rf "$folder/address"
pip install --quiet --no-build-isolation --no-deps --target "$folder/address" \
    --config-settings=build-dir="$folder/build-address" --config-settings=cmake.define.PYGPT_SANITIZE=address \
    --config-settings=cmake.define.PYGPT_CUDA=OFF --config-settings=install.strip=false .

# The sanitizer must be the first library of the process. Leaks are Python's own: it never frees its modules.
preload="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
# Isolated (-I): this folder's pygpt, which has no extension, is not the one that is imported.
env LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYGPT_TEST_EXAMPLES=3 \
    "$folder/venv/bin/python" -I -m pytest -q -p no:cacheprovider -m "not slow" -k "not compile" tests/ops

cmake -S . -B "$folder/build-thread" -G Ninja -DPYGPT_SANITIZE=thread -DPYGPT_CUDA=OFF -DCMAKE_BUILD_TYPE=Release \
    -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build "$folder/build-thread" --target driver
TSAN_OPTIONS=die_after_fork=0 "$folder/build-thread/driver"
