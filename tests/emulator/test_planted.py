"""Every check catches its planted bug, says so in the right words, passes the right twin, and misses it when off."""

import re
from dataclasses import dataclass

import numpy as np
import pytest

from tests.emulator.device import CHECKS, DeviceFault


@dataclass
class Planted:
    """A kernel of kernels/planted*.cu, a pattern of what its bug is reported as, the checks that are off to miss it."""

    kernel: str
    words: str
    off: tuple[str, ...] = ()
    grid: int = 1
    cluster: int = 1
    arch: int = 80
    shared: int = 0
    block: int = 128

    def __str__(self):
        return self.kernel


RACES = ("check_races",)
NOT_LANDED = "while an asynchronous copy to it is in flight|race: reads shared byte|which nothing has written"
IN_FLIGHT = ("check_async",)
BARRIERS = ("check_barriers",)
LANDED_CHECKS = ("check_async", "check_races", "check_init")
PLANTED = [
    Planted("shared_read_race", "race: ", RACES),
    Planted("shared_write_race", "race: ", RACES),
    Planted("many_readers", "race: writes shared byte 0 while warp 7|race: reads shared byte 0", RACES, block=256),
    Planted("warp_race", "with no synchronisation of the warp between", ("check_warp_races",)),
    Planted("uninitialised", "which nothing has written", ("check_init",)),
    Planted("out_of_bounds", "of 4096 bytes of device memory", ("check_bounds",)),
    # What a block or a thread has is an array of the emulator's: there is nothing to go on with outside of it.
    Planted("shared_out_of_bounds", "shared access of 4 bytes at offset 512; the block has 512 bytes"),
    Planted("local_out_of_bounds", r"local access of 4 bytes at offset -\d+; a thread has 16 bytes of local memory"),
    Planted("parameter_out_of_bounds", r"access of 4 bytes at offset \d+ of the kernel's 20 bytes of parameters"),
    Planted("misaligned", "misaligned: access", ("check_alignment",)),
    Planted("read_only", "writes to read-only memory", ("check_readonly",)),
    Planted("barrier_count", "disagree on the thread count of barrier 1", ("check_barriers",)),
    Planted("shuffle_absent", "shfl reads lane 20, which does not take part", ("check_masks",)),
    Planted("mask_stranger", "an executing lane is not in the member mask", ("check_masks",)),
    Planted("copy_without_wait", "while an asynchronous copy to it is in flight", ("check_async",)),
    Planted("copy_wait_after_barrier", NOT_LANDED, ("check_async", "check_races")),
    Planted("global_write_race", "race: writes global byte", ("check_global",), grid=2),
    Planted("global_read_race", "race: ", ("check_global",), grid=2),
    Planted("neighbours", "race: writes global byte", ("check_global",), grid=2),
    Planted("hand_over_up", "race: reads global byte", ("check_global",), grid=2),
    Planted("hand_over_down", "race: reads global byte", ("check_global",), grid=2),
    Planted("hand_over_ungathered", "race: reads global byte", ("check_global",), grid=2),
    Planted("last_block", "race: reads global byte", ("check_global",), grid=4),
    Planted("sum_of_warps", "race: adds to global byte .*, as does warp . of .*planted.cu", ("check_order",)),
    # Deadlocks are no matter of a check: there is nothing to go on with.
    Planted("divergent_barrier", "barrier 0 under divergence", ("check_barriers",)),
    Planted("named_barriers", "barrier 2: 64 of 128 threads have arrived"),
    Planted("lane_waits_for_lane", "nothing visible happened"),
    Planted("load_without_wait", NOT_LANDED, LANDED_CHECKS, arch=90),
    Planted("load_wrong_parity", NOT_LANDED, LANDED_CHECKS, arch=90),
    Planted("load_try_once", NOT_LANDED, LANDED_CHECKS, arch=90),
    Planted("load_wrong_bytes", "0 of 1 arrivals and 16 bytes are missing", arch=90),
    Planted(
        "load_in_flight_at_end", "ends while a bulk copy into its shared memory is in flight", ("check_async",), arch=90
    ),
    Planted("init_without_fence", "with no fence.mbarrier_init or fence.proxy.async", ("check_proxy",), arch=90),
    Planted(
        "init_without_barrier",
        "no synchronisation after its initialisation|is not initialised",
        ("check_barriers",),
        arch=90,
    ),
    Planted("barrier_without_init", "is not initialised", ("check_barriers",), arch=90),
    Planted("too_many_arrivals", "more arrivals at the mbarrier", ("check_barriers",), arch=90),
    Planted("store_without_fence", "with no fence.proxy.async after it", ("check_proxy",), arch=90),
    Planted("store_source_reused", "a bulk copy", RACES, arch=90),
    Planted("store_without_wait", "wait_group.read is missing", ("check_async",), arch=90),
    Planted("store_read_early", "race: reads global byte .*, written by a bulk copy", ("check_global",), arch=90),
    Planted("load_without_global_fence", "touches global byte .* with no fence.proxy.async", ("check_proxy",), arch=90),
    Planted("sums_in_turns", "race: adds to global byte .*, as does a bulk copy", ("check_order",), grid=3, arch=90),
    Planted("wgmma_without_fence", "with no fence.proxy.async after it", ("check_proxy",), arch=90),
    Planted("wgmma_without_wait", "a register that a wgmma in flight writes", ("check_async",), arch=90),
    Planted("wgmma_operand_changed", "wgmma of the group of warp 0", RACES, arch=90),
    Planted("wgmma_descriptors", "different descriptors of A", BARRIERS, arch=90),
    Planted("wgmma_two_places", "warps of the warpgroup are at different wgmma instructions", BARRIERS, arch=90),
    Planted("wgmma_three_warps", "waits for the warps of its warpgroup: 3 of 4 have come", arch=90),
    Planted("wgmma_never_fenced", "has touched a register of this wgmma with no wgmma.fence", IN_FLIGHT, arch=90),
    Planted("wgmma_accumulator_unfenced", "has touched a register of this wgmma", IN_FLIGHT, arch=90),
    Planted("wgmma_fragment_unfenced", "has touched a register of this wgmma", IN_FLIGHT, arch=90),
    Planted("wgmma_fragment_overwritten", "writes a register that a wgmma in flight reads", IN_FLIGHT, arch=90),
    Planted("wgmma_fragment_in_flight", "takes A from a register that a wgmma in flight writes", IN_FLIGHT, arch=90),
    Planted("neighbour_race", "race: ", RACES, grid=2, cluster=2, arch=90),
    Planted("neighbour_ended", "of a block of the cluster that has ended", ("check_bounds",), 2, 2, 90),
    Planted("cluster_barrier_twice", "arrives twice at the cluster's barrier", ("check_barriers",), 2, 2, 90),
    Planted("dynamic_alignment", "trap", ("check_alignment",), arch=90, shared=1024),
]
MISSED = "nothing, as the check is off"


def run(device, built, planted, wrong, seed=1, out=None, **settings):
    """The report, or None if the kernel ran to its end."""
    name = "planted_sm90.sm_90" if planted.arch == 90 else "planted.sm_80"
    module = device(arch=planted.arch, seed=seed, stall_limit=2_000_000, **settings).load(built / f"{name}.ptx")
    # Only the first half of `out` is device memory, so that a kernel that leaves it harms nobody when the check is off.
    out = np.zeros(2048, np.float32) if out is None else out
    x = np.arange(1024, dtype=np.float32)
    try:
        module.launch(
            planted.kernel,
            grid=planted.grid,
            block=planted.block,
            cluster=planted.cluster,
            args=[out, x, np.int32(wrong)],
            readonly=[x],
            shared=planted.shared,
            extents={0: 4096},
        )
    except DeviceFault as fault:
        return str(fault)
    assert out.any()
    return None


@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_bug_is_caught_in_the_right_words(device, built, planted):
    for seed in range(1, 6):
        report = run(device, built, planted, wrong=True, seed=seed)
        assert report is not None, f"seed {seed}: the bug was missed"
        assert re.search(planted.words, report), report
        assert planted.kernel in report and "planted" in report, "kernel and source line: " + report


@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_right_twin_passes(device, built, planted):
    for seed in range(1, 6):
        assert run(device, built, planted, wrong=False, seed=seed) is None


@pytest.mark.parametrize("planted", [p for p in PLANTED if p.off], ids=str)
def test_check_that_is_off_misses_it(device, built, planted):
    """If the bug were still reported, the test above would not test this check."""
    report = run(device, built, planted, wrong=True, **dict.fromkeys(planted.off, 0))
    assert report is None or not re.search(planted.words, report), report


def test_every_check_is_switched_off_alone():
    """Some planted bug is missed when just this check is off, so that the test above proves each of them."""
    assert {p.off[0] for p in PLANTED if len(p.off) == 1} == set(CHECKS)


FOR_WHICH = r"the launch before, leader\S*, at .*planted_sm90.cu:\d+.* for which griddepcontrol.wait has not waited"


@pytest.mark.parametrize(
    "kernel, follows, words",
    [
        ("reads_early", "out", f"race: reads global byte .*, written by {FOR_WHICH}"),
        ("writes_early", "in", f"race: writes global byte .* while {FOR_WHICH} may still read it"),
        ("never_waits", "nothing", "has no griddepcontrol.wait: nothing orders what follows after that one"),
    ],
)
@pytest.mark.parametrize("lets_next_begin", [True, False])
def test_a_launch_that_begins_early_waits_for_the_one_before(device, built, kernel, follows, words, lets_next_begin):
    """Before it touches what that one writes; and before it writes what that one reads, if that lets it begin."""
    leader = "leader" if lets_next_begin else "leader_that_lets_nobody_begin"

    def report(wrong, early=True, **settings):
        module = device(arch=90, **settings).load(built / "planted_sm90.sm_90.ptx")
        x, middle, out = np.zeros(128, np.float32), np.zeros(128, np.float32), np.zeros(128, np.float32)
        module.launch(leader, args=[middle, x], readonly=[x])
        target = x if follows == "in" else out
        try:
            module.launch(kernel, args=[target, middle, np.int32(wrong)], readonly=[middle], early=early)
        except DeviceFault as fault:
            return str(fault)
        assert target.any()
        return None

    missed = follows == "in" and not lets_next_begin
    for seed in range(1, 6):
        assert report(False, seed=seed) is None
        assert report(True, early=False, seed=seed) is None
        found = report(True, seed=seed)
        assert found is None if missed else re.search(words, found), found
    assert report(True, check_global=0) is None


def test_blocks_beyond_the_resident_ones_cannot_be_waited_for(device, built):
    """40 KiB a block and 4 multiprocessors hold 16 blocks: a grid barrier of 16 works, one of 17 never ends."""
    module = device(arch=80, stall_limit=2_000_000).load(built / "planted.sm_80.ptx")
    out, x = np.zeros(1024, np.float32), np.zeros(1024, np.float32)
    module.launch("grid_barrier", grid=16, args=[out, x, np.int32(0)])
    assert (out[:128] == 1).all()
    out[:] = 0
    with pytest.raises(DeviceFault, match="1 clusters cannot start before one of the 16 resident ones ends"):
        module.launch("grid_barrier", grid=17, args=[out, x, np.int32(0)])


def test_report_names_both_sides_of_a_race(device, built):
    report = run(device, built, PLANTED[0], wrong=True)
    assert report.count("planted.cu:") == 2, report
    assert "block (0,0,0) warp" in report and "PTX line" in report


def test_same_seed_same_interleaving(device, built):
    reports = [[run(device, built, PLANTED[0], wrong=True, seed=s) for s in range(8)] for _ in range(2)]
    assert reports[0] == reports[1]
    assert len(set(reports[0])) > 1, "another seed should be another interleaving"


@pytest.mark.nightly
@pytest.mark.parametrize("planted", PLANTED, ids=str)
def test_twenty_interleavings_give_the_same_bits(device, built, planted):
    """The right twins give the same bits whatever the order of turns.

    The bug is caught in nearly all of them; not in all, where a copy that nobody waits for may land in time.
    """
    results, caught = set(), 0
    for seed in range(20):
        out = np.zeros(2048, np.float32)
        assert run(device, built, planted, wrong=False, seed=seed, out=out) is None
        results.add(out.tobytes())
        report = run(device, built, planted, wrong=True, seed=seed)
        assert report is None or re.search(planted.words, report), report
        caught += report is not None
    assert len(results) == 1
    assert caught >= 16
