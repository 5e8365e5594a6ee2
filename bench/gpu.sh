#!/usr/bin/env bash
# bench/gpu.sh OUT [PIECE...]: all that only a machine with a GPU can show, in pieces of under ten minutes each.
#
#   build      pygpt with its CUDA kernels into OUT/venv, which sees the packages (torch) of the Python it is made by
#   test-OP    the op's tests on the GPU: `pytest -m cuda tests/ops/test_OP.py`
#   test-cuda  streams, graphs, memory beyond 32-bit indices: `pytest -m cuda tests/test_cuda.py`
#   wgmma      records what the card's wgmma computes (OUT/wgmma.npz), and compares it with the emulated device's guess
#   agree      compares what the ops give at fixed inputs with OUT/emulated.npz, recorded where there is an emulated device:
#              PYGPT_EMULATE=90 python tests/emulator/agree.py record OUT/emulated.npz (80 for a card before Hopper);
#              without that file it is left out
#   TOOL       memcheck, racecheck, synccheck, initcheck: compute-sanitizer over small cases of the op tests
#   bench-OP   `bench/compare.py --device cuda --only OP`, and bench-model, the whole model
#
# Each piece writes OUT/PIECE.log, benchmarks also OUT/PIECE.json. A piece that succeeded is not run again: after an
# interruption the same command goes on. Without PIECE all are run in this order, whether earlier ones fail or not
# (nothing runs without the build). At the end OUT/summary.txt has a line for each piece, and the benchmark's tables.
set -uo pipefail
if [ $# -lt 1 ]; then
    sed -n 's/^# \{0,1\}//p' "$0" | sed -n 2,16p
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
shift
cd "$(dirname "$0")/.."
limit=600  # seconds of a piece
python=$out/venv/bin/python  # isolated (-I) in what follows: the checkout's pygpt is not the one that was built

# Those with kernels for a GPU in their table.
ops=$(cd csrc/ops && grep -l '{"cuda_' *.cpp | sed 's/\.cpp$//')
# With compute-sanitizer a kernel takes 10 to 100 times as long: few examples, and the tests that vary shape and bits.
few="match or bits"

build() {
    python3 -m venv --system-site-packages "$out/venv" &&
        "$python" -m pip install --quiet "scikit-build-core>=0.10" "pybind11>=2.13" "ninja>=1.11" "cmake>=3.31" &&
        "$python" -m pip install --no-build-isolation --config-settings=cmake.define.PYGPT_CUDA=ON ".[test]" &&
        "$python" -I -c 'import torch, pygpt
assert torch.cuda.is_available(), "this torch does not find a GPU"
print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
print(pygpt.info())' &&
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv &&
        git describe --always --dirty
}
tests() {  # tests FILE [OPTION...]
    "$python" -I -m pytest -m cuda -rs -p no:cacheprovider "$@"
}
sanitizer() {  # sanitizer TOOL: torch's allocator would hide what lies beside a tensor
    local tool=$1 sanitize
    sanitize=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYGPT_TEST_EXAMPLES=1 "$sanitize" --tool "$tool" --target-processes all \
        --error-exitcode 9 --kernel-name kernel_substring=pygpt \
        "$python" -I -m pytest -m cuda -q -p no:cacheprovider -k "$few" tests/ops
}
compare() {  # compare NAME
    "$python" -I bench/compare.py --device cuda --only "$1" --json "$out/bench-$1.json"
}
piece() {
    case $1 in
        build) build ;;
        test-cuda) tests tests/test_cuda.py ;;
        test-*) tests "tests/ops/test_${1#test-}.py" ;;
        bench-*) compare "${1#bench-}" ;;
        wgmma) "$python" -I tests/emulator/record.py "$out/wgmma.npz" ;;
        agree) "$python" -I tests/emulator/agree.py compare "$out/emulated.npz" ;;
        memcheck | racecheck | synccheck | initcheck) sanitizer "$1" ;;
        *) echo "bench/gpu.sh has no piece $1" && return 2 ;;
    esac
}

if [ $# -eq 0 ]; then
    set -- build
    for op in $ops; do set -- "$@" "test-$op"; done
    set -- "$@" test-cuda wgmma
    if [ -e "$out/emulated.npz" ]; then set -- "$@" agree; fi
    set -- "$@" memcheck racecheck synccheck initcheck
    for op in $ops; do set -- "$@" "bench-$op"; done
    set -- "$@" bench-model
fi

export -f piece build tests sanitizer compare
export out python few
for name in "$@"; do
    if [ -e "$out/$name.done" ]; then
        echo "$name: done before"
        continue
    fi
    if [ "$name" != build ] && [ ! -e "$out/build.done" ]; then
        echo "$name: left out, there is no build"
        continue
    fi
    echo "::: $name"
    start=$SECONDS
    timeout "$limit" bash -c 'piece "$1"' piece "$name" >"$out/$name.log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        echo "$((SECONDS - start)) s" >"$out/$name.done"
        rm -f "$out/$name.failed"
    else
        echo "failed with status $status after $((SECONDS - start)) s" | tee "$out/$name.failed"
        tail -n 20 "$out/$name.log"
    fi
done

{
    for file in "$out"/*.done "$out"/*.failed; do
        [ -e "$file" ] || continue
        name=$(basename "$file")
        printf '%-28s %-7s %s\n' "${name%.*}" "${name##*.}" "$(cat "$file")"
    done
    for file in "$out"/bench-*.log; do
        [ -e "$file" ] && echo && cat "$file"
    done
} >"$out/summary.txt"
cat "$out/summary.txt"
! ls "$out"/*.failed >/dev/null 2>&1
