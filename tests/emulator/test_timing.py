"""The timing model: off by default, changes no result, and ranks designs that differ clearly the right way round.

Its times are asserted nowhere: they are a model's, not measurements.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TILES = (16, 512)
# The better design's time is at most this share of the worse one's: differences of 10 % and more are what it can tell.
CLEARLY = 0.9
DESIGNS = {  # and what the worse one's warps wait for
    ("columns", 80): ("shared load", "shared busy"),
    ("loads", 80): ("global load",),
    ("copies", 80): ("cp.async",),
    ("ring", 90): ("mbarrier",),
    ("products", 90): ("wgmma",),
}


def aligned(count):
    """Float32 memory at a multiple of 256 bytes, so that sectors and lines are the same in every run."""
    memory = np.zeros(4 * count + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + 4 * count].view(np.float32)


def run(device, built, kernel, arch, worse, grid=1, **settings):
    """The result, and the counts."""
    name = "designs_sm90.sm_90" if arch == 90 else "designs.sm_80"
    x, out = aligned(np.prod(TILES)), aligned(128 * grid)
    x[:] = np.random.default_rng(3).integers(1, 9, x.size)
    dev = device(arch=arch, **settings)
    dev.load(built / f"{name}.ptx").launch(kernel, grid=grid, block=128, args=[out, x, np.int32(worse)], readonly=[x])
    counts = dev.counts()
    return out, counts[0] if counts else None


@pytest.mark.parametrize("kernel, arch", DESIGNS)
def test_designs_are_ranked(device, built, kernel, arch):
    better, fast = run(device, built, kernel, arch, False, timing=1)
    worse, slow = run(device, built, kernel, arch, True, timing=1)
    assert (better == worse).all() and better.any()
    assert fast["timing"]["cycles"] < CLEARLY * slow["timing"]["cycles"]
    reasons = DESIGNS[kernel, arch]
    assert max(slow["stalls"], key=slow["stalls"].get) in reasons, slow["stalls"]
    assert sum(fast["stalls"].get(r, 0) for r in reasons) < sum(slow["stalls"].get(r, 0) for r in reasons)


@pytest.mark.parametrize("kernel, arch", DESIGNS)
def test_results_and_counts_are_those_without_it(device, built, kernel, arch):
    result, counts = run(device, built, kernel, arch, False, timing=1)
    same_result, same_counts = run(device, built, kernel, arch, False, count=1)
    assert (result == same_result).all()
    assert "timing" in counts and "timing" not in same_counts, "off by default"
    for name in ("global_sectors", "shared_wavefronts", "tensor_macs"):
        assert counts[name] == same_counts[name]


def test_same_launch_same_times(device, built):
    (_, first), (_, second) = (run(device, built, "copies", 80, False, timing=1, seed=seed) for seed in (1, 2))
    assert first == second, "there is nothing random in it"


def test_blocks_share_a_multiprocessor(device, built):
    """As many as registers allow; that hides what one alone waits for. The first clusters only, if that is asked."""
    settings = {"timing": 1, "grid": 4}
    _, four = run(device, built, "loads", 80, True, **settings)
    _, one_by_one = run(device, built, "loads", 80, True, timing_registers=512, **settings)
    assert (four["timing"]["at_a_time"], one_by_one["timing"]["at_a_time"]) == (4, 1)
    assert four["timing"]["cycles"] < CLEARLY * one_by_one["timing"]["cycles"]
    _, two = run(device, built, "loads", 80, True, timing_registers=512, timing_clusters=2, **settings)
    assert two["timing"]["clusters"] == 2
    assert two["timing"]["cycles"] < CLEARLY * one_by_one["timing"]["cycles"]


def test_data_in_l2_is_nearer(device, built):
    _, stream = run(device, built, "loads", 80, True, timing=1)
    _, reused = run(device, built, "loads", 80, True, timing=1, timing_reuse=100)
    assert reused["timing"]["cycles"] < CLEARLY * stream["timing"]["cycles"]


CONFLICTS = """
import numpy as np, sys
from tests.emulator.device import BUILD, Device
x, out = np.ones((16, 512), np.float32), np.zeros(128, np.float32)
Device(arch=80).load(BUILD / "designs.sm_80.ptx").launch("columns", args=[out, x, np.int32(1)], readonly=[x])
"""


def test_profile_shows_it_on_request(built):
    """By line, worst first, and never without the words that it is no measurement."""
    command = [sys.executable, "-m", "tests.emulator.profile", "--time", "--top", "1", "--", sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, CONFLICTS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "timing model (computed, not measured)" in done.stdout and "shared busy" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(("(shared busy)", "(shared load)")) and "designs.cu:" in done.stdout
