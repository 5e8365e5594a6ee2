"""Builds the emulator once for all tests of this folder; skips them where there is no CUDA compiler."""

import shutil
from pathlib import Path

import pytest

from tests.emulator import device as emulated


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    if shutil.which("nvcc"):
        return
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.skip(reason="needs nvcc, to make PTX of the test kernels"))


@pytest.fixture(scope="session")
def built():
    """The build folder, up to date."""
    emulated.build()
    return emulated.BUILD


@pytest.fixture
def device(built):
    """Makes devices: device(arch=80, seed=3)."""
    return lambda **settings: emulated.Device(**settings)
