"""No numeric change: a training step and a decode give the recorded bytes. README.md says what to do when they move."""

from __future__ import annotations

import json

import pytest

from tests.golden.step import CONFIGS, DTYPES, HASHES, SETS, c_library, forced, hashes, missing


@pytest.mark.parametrize("key", CONFIGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SETS)
def test_bytes_are_those_recorded(name: str, dtype: str, key: str) -> None:
    if reason := missing(name):
        pytest.skip(f"{name}: {reason}")
    recorded = json.loads(HASHES.read_text())
    if recorded["c_library"] != c_library():
        pytest.skip(f"recorded with the C library {recorded['c_library']}, but this is {c_library()}")
    with forced(name):
        now = hashes(CONFIGS[key], dtype)
    before = recorded[key][name][dtype]
    moved = [what for what in now if now[what] != before[what]]
    assert not moved, f"{key}, {name}, {dtype}: other bytes in {', '.join(moved)}; see tests/golden/README.md"
