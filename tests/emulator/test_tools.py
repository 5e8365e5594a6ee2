"""The mutation and profile tools, on a small kernel whose synchronisation is known."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.emulator import mutate, profile, target

ROOT = Path(__file__).resolve().parents[2]
# Layer norm of programs.cu: each of its two block sums clears the way for the next with one barrier, and waits for all
# partial sums with another. Nothing has used the partial sums before the first one.
LAYER_NORM = """
import numpy as np
from tests.emulator.device import BUILD, Device
x = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
out = np.zeros_like(x)
Device(arch=80).load(BUILD / "programs.sm_80.ptx").launch(
    "layer_norm", grid=3, block=96, args=[out, x, np.int32(200), np.float32(1e-5)], readonly=[x])
want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
assert np.abs(out - want).max() < 1e-5
"""
# Blocks that add to the same numbers, one after the other.
TURNS = """
import numpy as np
from tests.emulator.device import BUILD, Device
x, out = np.arange(128, dtype=np.float32), np.zeros(1024, np.float32)
Device(arch=90).load(BUILD / "planted_sm90.sm_90.ptx").launch(
    "sums_in_turns", grid=3, block=128, args=[out, x, np.int32(0)], readonly=[x])
"""
PATH = f"import sys\nsys.path.append({str(ROOT)!r})\n"


@pytest.fixture(params=["forked", "command"])
def run(request, built):
    if request.param == "forked":
        return target.Code(LAYER_NORM, "").run
    return target.Command([sys.executable, "-c", PATH + LAYER_NORM]).run


def test_only_the_barrier_that_is_not_needed_survives(run):
    rows = list(mutate.mutations(run, timeout=60))
    assert [m.text for m in rows] == ["bar.sync \t0;"] * 4 and all(m.times == 9 for m in rows)
    assert [m.noticed for m in rows] == [False, True, True, True]
    assert all("race" in m.why and "programs.cu" in m.source for m in rows[1:])


def test_an_acquire_and_a_release_lose_their_order(built):
    """They still read and write the word by which blocks take turns, so that nobody waits in vain."""
    rows = list(mutate.mutations(target.Code(TURNS, "").run, timeout=60))
    words = ["fence.proxy", "bar.sync", "ld.acquire", "cp.async.bulk.wait_group", "st.release"]
    assert [m.text.split()[0].startswith(w) for m, w in zip(rows, words, strict=True)] == [True] * 5
    assert all(m.noticed for m in rows)
    assert all("race: adds to global byte" in rows[i].why for i in (2, 4))


def test_kernels_are_chosen_by_name(run):
    assert list(mutate.mutations(run, kernel="attention")) == []


def test_a_run_that_fails_by_itself_is_refused(built):
    with pytest.raises(SystemExit, match="fails with nothing removed: ZeroDivisionError"):
        list(mutate.mutations(target.Code("1 / 0", "").run))


def test_a_run_that_hangs_counts_as_noticed():
    outcome = target.Code("while True: pass", "").run({}, 0.2)
    assert not outcome.passed and outcome.why == "still running after 0.2 s"


def test_counts_by_line(run):
    (kernel,) = profile.by_kernel(profile.profile(run))
    assert kernel["launches"] == 1 and kernel["blocks"] == 3
    assert kernel["classes"]["barrier"] == 4 * 9 and kernel["tensor_macs"] == 0
    assert sum(c["instructions"] for c in kernel["lines"].values()) == kernel["instructions"]
    text = profile.report(kernel, "instructions", 3).splitlines()
    assert text[0].startswith("layer_norm: 1 launches") and len(text) == 2 + 3
    shares = [float(row.split()[0]) for row in text[2:]]
    assert shares == sorted(shares, reverse=True) and all("programs.cu:" in row for row in text[2:])


def test_bank_conflicts_and_scattered_sectors_are_counted(device, built):
    """32 lanes, one bank: 32 wavefronts where one would do. What lies side by side fills its sectors."""
    dev = device(arch=80, count=1)
    memory = np.ones(32 + 1024 + 8, np.float32)
    start = -memory.ctypes.data // 4 % 8  # the first sector's
    out, x = memory[start : start + 32], memory[start + 32 : start + 1056]
    dev.load(built / "programs.sm_80.ptx").launch("bank_conflicts", block=32, args=[out, x], readonly=[x])
    (kernel,) = profile.by_kernel(dev.counts())
    assert kernel["shared_wavefronts"] - kernel["shared_ideal"] == 32 * 31
    assert kernel["global_sectors"] == kernel["global_ideal"] == 4 * 33


@pytest.mark.parametrize("tool", ["mutate", "profile"])
def test_command_line(built, tool):
    command = [sys.executable, "-m", f"tests.emulator.{tool}", "--", sys.executable, "-c", PATH + LAYER_NORM]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    words = {"mutate": "4 removed one at a time, 3 noticed, 1 survived", "profile": "layer_norm: 1 launches"}
    assert done.returncode == 0 and words[tool] in done.stdout, done.stderr
    nothing = subprocess.run(command[:3], capture_output=True, text=True, env=environment)
    assert nothing.returncode and "give either -c CODE or -- COMMAND" in nothing.stderr
