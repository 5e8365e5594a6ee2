"""Settings for every test."""

from __future__ import annotations

import hypothesis
import pytest
import torch

from tests.support import random_generator

# A fixture that forces an implementation holds for all examples of a test, as it should.
hypothesis.settings.register_profile(
    "pygpt",
    deadline=None,
    max_examples=25,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("pygpt")


@pytest.fixture
def generator() -> torch.Generator:
    """A random generator with a fresh, printed seed."""
    return random_generator()
