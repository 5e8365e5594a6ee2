"""Every op test that takes the fixture ``implementation`` runs on each entry of its op's table, under its name."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import pygpt
from pygpt.extension import C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("PYGPT_EMULATE"):
        for item in items:
            if item.get_closest_marker("float64"):
                item.add_marker(pytest.mark.skip(reason="CUDA kernels do not compute in float64"))


def _op_of(module_name: str) -> str:
    return module_name.rpartition("test_")[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "implementation" in metafunc.fixturenames:
        entries = dict(C.implementations())[_op_of(metafunc.module.__name__)]
        metafunc.parametrize("implementation", [name for name, _ in entries], indirect=True)


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the forced implementation; what ran is checked to have been it."""
    op = _op_of(request.module.__name__)
    reason = dict(dict(C.implementations())[op])[request.param]
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    with pygpt.force(op, request.param):
        yield request.param
        assert C.last_used(op) == request.param
