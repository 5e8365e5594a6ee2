"""The tree is the architecture: this file says what an op consists of, and who may include whom.

To add an op, make the files that `test_an_op_is_complete` names, and its line in csrc/cpu/kernels.h,
csrc/bindings/bindings.h and module.cpp, pygpt/ops/__init__.py and pygpt/_C.pyi.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import pygpt
from pygpt.extension import C

ROOT = Path(__file__).parent.parent
# Headers of csrc/ops that ops share.
SHARED_HEADERS = {
    *("activation", "attention_keys", "check", "implementation", "norm_check", "packed_weight", "product_check")
}
OPS = sorted(path.stem for path in (ROOT / "csrc/ops").glob("*.h") if path.stem not in SHARED_HEADERS)


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_complete(op):
    for path in (
        f"csrc/ops/{op}.h",
        f"csrc/ops/{op}.cpp",
        f"csrc/bindings/{op}.cpp",
        f"pygpt/ops/{op}.py",
        f"tests/ops/test_{op}.py",
    ):
        assert (ROOT / path).is_file(), f"the op {op} lacks {path}"
    assert re.search(r"\bImplementation<.*> \w+\[\] = \{", (ROOT / f"csrc/ops/{op}.cpp").read_text()), (
        f"csrc/ops/{op}.cpp has no table of implementations"
    )
    assert op in functions_of(ROOT / "pygpt/reference.py"), f"pygpt/reference.py lacks {op}"
    assert re.search(rf'"{op}"', (ROOT / "bench/rows.py").read_text()), f"bench/rows.py has no row {op}"
    kernels = sorted((ROOT / "csrc/cpu/kernels").glob(f"{op}.cpp")) or sorted(
        (ROOT / "csrc/cpu/kernels").glob(f"{op}_*.cpp")
    )
    assert kernels, f"csrc/cpu/kernels has no kernels of {op}"
    for file in kernels:
        assert file.read_text().startswith("// "), f"{file} does not open with what it computes"


def test_the_tables_are_those_of_the_tree():
    assert sorted(op for op, _ in C.implementations()) == OPS
    for op, entries in C.implementations():
        names = [name for name, _ in entries]
        assert names[-1] == "cpu_scalar", f"{op}: the scalar kernels, which run everywhere, stand last"
        assert len(set(names)) == len(names)


# From a folder of csrc, the folders whose headers its files may include, besides its own.
MAY_INCLUDE = {
    "core": set(),
    "ops": {"core", "cpu/kernels.h", "cpu/features.h", "cuda/kernels.h", "cuda/features.h"},
    "cpu": {"core", "ops", "cpu/kernels/measure.h"},
    "cpu/kernels": {"core", "ops", "cpu"},
    "cuda": {"core", "ops", "session/cache.h", "cuda/tiles", "cuda/ptx"},
    "cuda/attention": {"core", "ops", "cuda", "cuda/tiles", "cuda/ptx"},
    "cuda/matmul": {"core", "ops", "cuda", "cuda/tiles", "cuda/ptx"},
    "cuda/tiles": {"core", "cuda", "cuda/ptx"},
    "cuda/ptx": set(),
    "session": {"core", "ops", "cpu/thread_pool.h", "cuda/kernels.h"},
    "bindings": {
        *("core", "ops", "session", "cpu/thread_pool.h", "cpu/measure.h", "cuda/devices.h", "cuda/execution.h"),
        *("launch.h", "memory.h", "options.h", "touch.h"),  # the emulator's (tests/emulator/src), in pygpt._C_emulated
    },
}


def test_includes_go_downwards():
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        folder = path.parent.relative_to(ROOT / "csrc").as_posix()
        allowed = MAY_INCLUDE[folder]
        for included in re.findall(r'^#include "(.+)"', path.read_text(), flags=re.MULTILINE):
            target = Path(included).parent.as_posix()
            assert target == folder or target in allowed or included in allowed, f"{path} may not include {included}"


def test_the_stub_has_the_functions_of_the_module():
    stub = ast.parse((ROOT / "pygpt/_C.pyi").read_text())
    stubbed = {node.name: node for node in stub.body if isinstance(node, ast.FunctionDef)}
    functions = {name: value for name, value in vars(C).items() if callable(value)}
    assert set(stubbed) == set(functions)
    for name, function in functions.items():
        signature = function.__doc__.splitlines()[0]
        given = re.findall(r"[(,] ?(\w+): ", signature)
        assert given == [argument.arg for argument in stubbed[name].args.args], f"_C.pyi: {name}"


def test_public_names():
    """The names of pygpt that users rely on; add to them, do not rename them."""
    assert set(pygpt.__all__) >= {"GPT", "GPTConfig", "force", "info", "nn", "ops", "optim"}
    assert set(pygpt.ops.__all__) >= {
        "add",
        "add_layer_norm",
        "add_rms_norm",
        "attention",
        "cross_entropy",
        "dropout",
        "embedding",
        "feed_forward",
        "gated_product",
        "grad_norm",
        "layer_norm",
        "linear",
        "linear_cross_entropy",
        "rms_norm",
        "rotary",
        "sample",
    }
    assert set(pygpt.nn.__all__) >= {"Embedding", "FeedForward", "LayerNorm", "Linear", "MultiHeadAttention"}
