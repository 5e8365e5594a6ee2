"""`agree.py`, which waits for a card, on the emulated one, and on one that computes otherwise."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.emulator.agree import differences

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(find_spec("pygpt._C_emulated") is None, reason="built without PYGPT_EMULATOR=ON")


def agree(what, file, arith_seed=0):
    """Of an op that is exact, and one with an approximation, of exp."""
    environment = {**os.environ, "PYGPT_EMULATE": "80", "PYGPT_EMULATOR_ARITH_SEED": str(arith_seed)}
    command = [sys.executable, ROOT / "tests/emulator/agree.py", what, file, "--only", "add", "--only", "gated_product"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    file = tmp_path_factory.mktemp("agree") / "results.npz"
    done = agree("record", file)
    assert done.returncode == 0 and "18 results recorded" in done.stdout, done.stdout + done.stderr
    return file


def test_the_recorded_results_are_given_again(recorded):
    done = agree("compare", recorded)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\w+) cuda_sm80 (\w+) +(\d+) of +(\d+) equal, at most 0.000 ", done.stdout, re.M)
    assert [line[:2] for line in lines] == [
        (o, d) for o in ("add", "gated_product") for d in ("bfloat16", "float16", "float32")
    ]
    assert all(equal == count for *_, equal, count in lines)


def test_other_approximations_are_within_what_is_allowed(recorded):
    done = agree("compare", recorded, arith_seed=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"add cuda_sm80 .* at most 0.000", done.stdout)) == 3
    (share,) = re.findall(r"gated_product cuda_sm80 float32 .* at most (\S+) of the allowed", done.stdout)
    assert 0 < float(share) < 1


CHANGES = [
    ("add cuda_sm80 float32, output 0", 1e-6, "1 of 495 differ, first at [1, 2, 3]"),
    ("gated_product cuda_sm80 bfloat16, gradient of up", np.nan, "1 of 385 differ, first at [1, 2]"),
    ("gated_product cuda_sm80 float32, output 0", 1e-3, "1 of 385 differ, first at [1, 2]"),
    ("gated_product cuda_sm80 float16, output 0", None, "other shapes"),
]


@pytest.mark.parametrize("name, change, words", CHANGES, ids=[change[0] for change in CHANGES])
def test_a_changed_value_is_reported(recorded, name, change, words):
    with np.load(recorded) as file:
        results = {key: file[key] for key in file.files}
    changed = {key: value.copy() for key, value in results.items()}
    if change is None:
        changed[name] = changed[name][1:]
    else:
        changed[name][(1, 2, 3)[: changed[name].ndim]] += change
    lines, (wrong,) = differences(results, changed)
    assert len(lines) == 6 and wrong.startswith(f"{name}: {words}")
    del changed[name]
    assert differences(results, changed)[1] == [f"{name}: not there"]
    assert differences(results, results)[1] == []
