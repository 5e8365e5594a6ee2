"""Every op test that takes the fixture ``implementation`` runs on each entry of its op's table, under its name.

On the CPU these are the CPU's entries; under PYGPT_EMULATE the CUDA ones, on the emulated device; with ``-m cuda`` the
CUDA ones on a GPU, which is then torch's default device. Tests that are marked ``decode`` run on the entries for few
rows, those marked ``float16`` on the ones that compute in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

import pygpt
from pygpt.extension import C
from tests.support import EMULATED, DrawnOnTheCpu


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not EMULATED:
        return
    for item in items:
        if item.get_closest_marker("float64"):
            item.add_marker(pytest.mark.skip(reason="CUDA kernels do not compute in float64"))


def _op_of(module_name: str) -> str:
    return module_name.rpartition("test_")[2]


def _entries_of(module_name: str) -> list[str]:
    return list(dict(dict(C.implementations())[_op_of(module_name)]))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" not in metafunc.fixturenames:
        return
    names = _entries_of(metafunc.module.__name__)
    decoders = [name for name in names if name.endswith("_decode")]
    if metafunc.definition.get_closest_marker("decode"):
        names = decoders
    elif metafunc.definition.get_closest_marker("float16"):
        names = [name for name in names if name.startswith("cuda") and name not in decoders]
    elif metafunc.definition.get_closest_marker("cpu"):
        names = [name for name in names if not name.startswith("cuda")]
    elif EMULATED:  # all queries and rows of a training step take them too long
        names = [name for name in names if name.startswith("cuda") and name not in decoders]
    marked = [pytest.param(name, marks=[pytest.mark.cuda] if name.startswith("cuda") else []) for name in names]
    metafunc.parametrize("implementation", marked, indirect=True)


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the forced implementation; what ran is checked to have been it."""
    name: str = request.param
    op = _op_of(request.module.__name__)
    reason = dict(dict(C.implementations())[op])[name]
    if not reason and name.startswith("cuda") and not EMULATED and not torch.cuda.is_available():
        reason = "this torch is built without CUDA"
    if reason:
        pytest.skip(f"{name}: {reason}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(pygpt.force(op, name))
        if name.startswith("cuda") and not EMULATED:
            stack.enter_context(torch.device("cuda"))
            stack.enter_context(DrawnOnTheCpu())
        yield name
        assert C.last_used(op) == name
