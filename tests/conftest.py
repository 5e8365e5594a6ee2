"""Settings for every test."""

from __future__ import annotations

import os
import sys

import hypothesis
import pytest
import torch

from tests.support import EMULATED, random_generator

# Programs that tests start import the installed pygpt, as the tests do, not the checkout they may be started in.
os.environ["PYTHONSAFEPATH"] = "1"

# The seed of a run that is to be repeated: of the tests' own generators (tests/support.py), and of hypothesis's below.
SEED = os.environ.get("PYGPT_TEST_SEED")

# A fixture that forces an implementation holds for all examples of a test, as it should.
hypothesis.settings.register_profile(
    "pygpt",
    deadline=None,
    # Fewer under the sanitizers and on the emulated device.
    max_examples=int(os.environ.get("PYGPT_TEST_EXAMPLES", "6" if EMULATED else "25")),
    print_blob=True,
    # What an earlier run has found comes first, but not where a run is to be repeated.
    **({"database": None} if SEED else {}),
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pygpt")


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Python 3.10 does not know PYTHONSAFEPATH: there, programs begin where no pygpt lies."""
    if sys.version_info < (3, 11):
        os.chdir(tmp_path_factory.mktemp("away"))


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator with a fresh, printed seed."""
    return random_generator()


def pytest_configure(config: pytest.Config) -> None:
    """Let PYGPT_TEST_SEED decide what hypothesis draws, too, unless ``--hypothesis-seed`` does."""
    if SEED and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = SEED


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out, unless ``-m`` asks for them, and on the emulated device those of the CPU."""
    if EMULATED:
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(pytest.mark.skip(reason="the rule of the CPU; CUDA's is another"))
    if "nightly" in config.option.markexpr:
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
