"""Barriers of blocks and clusters, and mbarriers, phase by phase."""

import time

import numpy as np
import pytest

from tests.emulator.device import DeviceFault
from tests.emulator.ptx import kernel

BARRIER = ".shared .align 8 .b64 bar; .shared .align 8 .b64 second;"


def run(device, body, arrays, *, grid=1, block=32, cluster=1, preamble=BARRIER, arch=90):
    device.load(kernel(body, len(arrays), arch, preamble)).launch(
        "test", grid=grid, block=block, cluster=cluster, args=arrays
    )


def one_lane(device, body, results):
    """Runs the body in one thread; it leaves %r0, %r1, ...; %s is the mbarrier's address, %x for a state."""
    out = np.zeros(results, np.uint32)
    stores = " ".join(f"st.global.u32 [%p0+{4 * i}], %r{i};" for i in range(results))
    text = f".reg .b32 %s, %r<{results}>; .reg .b64 %x; .reg .pred %q; mov.u32 %s, bar; {body} {stores}"
    run(device, text, [out], block=1)
    return out.tolist()


def phase(register, parity, how="test_wait.parity"):
    return f"mbarrier.{how}.shared::cta.b64 %q, [%s], {parity}; selp.u32 {register}, 1, 0, %q;"


def test_a_phase_completes_with_the_last_arrival(device):
    """A fresh barrier is in phase 0: waiting for parity 1 returns at once, for parity 0 after the arrivals."""
    arrive = "mbarrier.arrive.shared::cta.b64 %x, [%s];"
    body = f"""mbarrier.init.shared::cta.b64 [%s], 3; {phase("%r0", 1)} {phase("%r1", 0)}
        {arrive} {arrive} {phase("%r2", 0)} {arrive} {phase("%r3", 0)} {phase("%r4", 1)}
        {arrive} {arrive} {arrive} {phase("%r5", 0)} {phase("%r6", 1)}"""
    assert one_lane(device(), body, 7) == [1, 0, 0, 1, 0, 0, 1]


def test_arrivals_by_number_and_by_state(device):
    body = f"""mbarrier.init.shared::cta.b64 [%s], 5; mbarrier.arrive.shared::cta.b64 %x, [%s], 2;
        mbarrier.pending_count.b64 %r0, %x; mbarrier.arrive.noComplete.shared::cta.b64 %x, [%s], 2;
        mbarrier.pending_count.b64 %r1, %x; mbarrier.test_wait.shared::cta.b64 %q, [%s], %x; selp.u32 %r2, 1, 0, %q;
        mbarrier.arrive.release.cta.shared::cta.b64 _, [%s]; mbarrier.test_wait.shared::cta.b64 %q, [%s], %x;
        selp.u32 %r3, 1, 0, %q; {phase("%r4", 0)}"""
    assert one_lane(device(), body, 5) == [5, 3, 0, 1, 1]


def test_bytes_keep_a_phase_open(device):
    body = f"""mbarrier.init.shared::cta.b64 [%s], 1;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s], 96; {phase("%r0", 0)}
        mbarrier.complete_tx.shared::cta.relaxed.cluster.b64 [%s], 32; {phase("%r1", 0)}
        mbarrier.complete_tx.shared::cta.relaxed.cluster.b64 [%s], 64; {phase("%r2", 0)}
        mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%s], 16; mbarrier.arrive.shared::cta.b64 _, [%s];
        {phase("%r3", 1)}
        mbarrier.complete_tx.shared::cta.relaxed.cluster.b64 [%s], 16; {phase("%r4", 1)}"""
    assert one_lane(device(), body, 5) == [0, 0, 1, 0, 1]


def test_bytes_may_come_before_they_are_expected(device):
    body = f"""mbarrier.init.shared::cta.b64 [%s], 1; mbarrier.complete_tx.shared::cta.relaxed.cluster.b64 [%s], 32;
        {phase("%r0", 0)} mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s], 32; {phase("%r1", 0)}"""
    assert one_lane(device(), body, 2) == [0, 1]


def test_who_drops_out_is_not_waited_for_again(device):
    body = f"""mbarrier.init.shared::cta.b64 [%s], 2; mbarrier.arrive_drop.shared::cta.b64 _, [%s];
        mbarrier.arrive.shared::cta.b64 _, [%s]; {phase("%r0", 0)}
        mbarrier.arrive.shared::cta.b64 _, [%s]; {phase("%r1", 1)}
        mbarrier.inval.shared::cta.b64 [%s]; mbarrier.init.shared::cta.b64 [%s], 2;
        mbarrier.arrive_drop.expect_tx.shared::cta.b64 _, [%s], 8; mbarrier.arrive.shared::cta.b64 _, [%s];
        {phase("%r2", 0)}
        mbarrier.complete_tx.shared::cta.relaxed.cluster.b64 [%s], 8; {phase("%r3", 0)}
        mbarrier.arrive.shared::cta.b64 _, [%s]; {phase("%r4", 1)}"""
    assert one_lane(device(), body, 5) == [1, 1, 0, 1, 1]


def test_no_complete_must_not_complete(device):
    body = (
        "mbarrier.init.shared::cta.b64 [%s], 1; mbarrier.arrive.noComplete.shared::cta.b64 %x, [%s], 1; mov.u32 %r0, 0;"
    )
    with pytest.raises(DeviceFault, match=r"\.noComplete completes the phase"):
        one_lane(device(), body, 1)


@pytest.mark.parametrize("how", ["try_wait.parity", "try_wait.parity.acquire.cluster", "test_wait.parity.acquire.cta"])
def test_waiting_warps_go_on_together(device, how):
    """A ring of two warps by two mbarriers: each hands a growing number to the other, 20 times."""
    body = f"""
        .reg .b32 %mine, %theirs, %i, %v, %w; .reg .pred %q, %first; .reg .b32 %warp, %parity;
        shr.u32 %warp, %t, 5; setp.eq.u32 %first, %warp, 0; mov.u32 %mine, bar; mov.u32 %theirs, second;
        @!%first mov.u32 %mine, second; @!%first mov.u32 %theirs, bar;
        setp.eq.u32 %q, %t, 0; @%q mbarrier.init.shared::cta.b64 [%mine], 32;
        @%q mbarrier.init.shared::cta.b64 [%theirs], 32;
        @%q st.shared.u32 [value], 0; bar.sync 0; mov.u32 %i, 0;
        @!%first mbarrier.arrive.shared::cta.b64 _, [%theirs];
    again: and.b32 %parity, %i, 1;
    wait: mbarrier.{how}.shared::cta.b64 %q, [%mine], %parity; @!%q bra wait;
        setp.eq.u32 %q, %i, 20; @%q bra done;
        and.b32 %w, %t, 31; setp.eq.u32 %q, %w, 0; @%q ld.shared.u32 %v, [value]; @%q add.u32 %v, %v, 1;
        @%q st.shared.u32 [value], %v; bar.warp.sync 0xffffffff;
        mbarrier.arrive.shared::cta.b64 _, [%theirs]; add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 20; @%q bra again;
    done: bar.sync 0; ld.shared.u32 %v, [value]; mad.wide.u32 %at, %t, 4, %p0; st.global.u32 [%at], %v;"""
    for seed in (1, 2, 3):
        out = np.zeros(64, np.uint32)
        run(device(seed=seed), body, [out], block=64, preamble=BARRIER + ".shared .align 4 .b32 value;")
        assert (out == 40).all()


def test_barrier_reductions(device):
    """barrier.red: how many, all, any of the block's predicates, in the block or among some of its warps."""
    body = """.reg .b32 %c, %r; .reg .pred %q, %p; mad.wide.u32 %at, %t, 4, %p0; ld.global.u32 %r, [%at];
        setp.ne.u32 %q, %r, 0; bar.red.popc.u32 %r, 0, %q; bar.red.and.pred %p, 0, %q; @%p add.u32 %r, %r, 1000;
        bar.red.or.pred %p, 0, %q; @%p add.u32 %r, %r, 2000; setp.lt.u32 %p, %t, 64; @!%p bra over;
        barrier.cta.red.popc.u32 %c, 3, 64, !%q; mad.lo.u32 %r, %c, 10000, %r;
    over: mad.wide.u32 %at, %t, 4, %p1; st.global.u32 [%at], %r;"""
    for x in (np.random.default_rng(0).integers(0, 2, 128), np.ones(128), np.zeros(128)):
        x, out = x.astype(np.uint32), np.zeros(128, np.uint32)
        run(device(), body, [x, out], block=128, arch=80)
        base = x.sum() + 1000 * x.all() + 2000 * x.any()
        assert (out[64:] == base).all() and (out[:64] == base + 10000 * (64 - x[:64].sum())).all()


def test_arrive_and_sync_at_named_barriers(device):
    """Producer and consumer: one warp only arrives, the others wait."""
    body = """.reg .b32 %v; .reg .pred %q; setp.lt.u32 %q, %t, 32; @!%q bra consume;
        mad.lo.u32 %v, %t, 3, 1; shl.b32 %n, %t, 2; mov.u32 %block, buffer; add.u32 %n, %n, %block;
        st.shared.u32 [%n], %v;
        bar.arrive 5, 96; bra done;
    consume: bar.sync 5, 96; and.b32 %v, %t, 31; shl.b32 %n, %v, 2; mov.u32 %block, buffer; add.u32 %n, %n, %block;
        ld.shared.u32 %v, [%n]; mad.wide.u32 %at, %t, 4, %p0; st.global.u32 [%at], %v;
    done:"""
    out = np.zeros(96, np.uint32)
    run(device(), body, [out], block=96, preamble=".shared .align 4 .b8 buffer[128];")
    assert (out[32:] == 3 * (np.arange(32, 96) % 32) + 1).all()


@pytest.mark.parametrize("fenced", [True, False])
def test_mbarriers_of_other_blocks(device, fenced):
    """Every block of a cluster arrives at the first one's mbarrier; the first waits for all.

    A relaxed arrival at the cluster's barrier shows the mbarrier's initialisation only if that was fenced.
    """
    body = f""".reg .b32 %s, %far, %r; .reg .pred %q, %one; mov.u32 %s, bar; mov.u32 %r, %cluster_ctarank;
        mov.u32 %n, %tid.x; setp.eq.u32 %one, %n, 0; @%one mbarrier.init.shared::cta.b64 [%s], 4;
        {"fence.mbarrier_init.release.cluster;" if fenced else ""}
        barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;
        mapa.shared::cluster.u32 %far, %s, 0; @%one mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%far];
        setp.ne.u32 %q, %r, 0; @%q bra done;
    wait: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %q, [%s], 0; @!%q bra wait;
        @%one st.global.u32 [%p0], 1;
    done: barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"""
    out = np.zeros(1, np.uint32)
    if fenced:
        run(device(), body, [out], grid=4, cluster=4)
        assert out[0] == 1
    else:
        with pytest.raises(DeviceFault, match="no synchronisation after its initialisation"):
            run(device(), body, [out], grid=4, cluster=4)


def test_instructions_without_effect_here(device):
    body = """setmaxnreg.dec.sync.aligned.u32 40; setmaxnreg.inc.sync.aligned.u32 232; griddepcontrol.wait;
        griddepcontrol.launch_dependents; nanosleep.u32 20; prefetch.global.L2 [%p0]; membar.gl; fence.acq_rel.gpu;
        fence.sc.sys; fence.proxy.async; fence.proxy.async.global; fence.proxy.async.shared::cta;
        mad.wide.u32 %at, %t, 4, %p0; st.global.u32 [%at], %t;"""
    out = np.zeros(128, np.uint32)
    run(device(), body, [out], block=128)
    assert (out == np.arange(128)).all()


@pytest.mark.parametrize("most, fits", [(232, True), (240, False)])
def test_registers_that_the_warps_ask_for(device, most, fits):
    """A warpgroup gives registers up, two take more: 40 + 2 * 232 a thread fit into 65536, 40 + 2 * 240 do not."""
    body = f"""setp.lt.u32 %q, %t, 128; @%q bra give; setmaxnreg.inc.sync.aligned.u32 {most}; bra done;
    give: setmaxnreg.dec.sync.aligned.u32 40;
    done: mad.wide.u32 %at, %t, 4, %p0; st.global.u32 [%at], %t;"""
    out = np.zeros(384, np.uint32)
    if fits:
        run(device(), ".reg .pred %q; " + body, [out], block=384)
        assert (out == np.arange(384)).all()
    else:
        with pytest.raises(DeviceFault, match=r"66560 of 65536 registers: setmaxnreg\.inc would wait forever"):
            run(device(), ".reg .pred %q; " + body, [out], block=384)


@pytest.mark.parametrize("count", [20, 36, 264])
def test_register_counts_that_setmaxnreg_does_not_take(device, count):
    with pytest.raises(DeviceFault, match="no multiple of 8 from 24 to 256"):
        run(device(), f"setmaxnreg.dec.sync.aligned.u32 {count};", [np.zeros(1, np.uint32)], block=128)


def test_a_stall_is_reported_within_ten_seconds(device):
    """Of processor time, at the default limits: 32 warps spin for a flag that nobody sets."""
    body = """.reg .b32 %v; .reg .pred %q;
    wait: ld.volatile.global.u32 %v, [%p0]; setp.eq.u32 %q, %v, 0; @%q bra wait;"""
    start = time.process_time()
    with pytest.raises(DeviceFault, match="nothing visible happened for 4000000 warp instructions"):
        run(device(), body, [np.zeros(1, np.uint32)], block=1024)
    assert time.process_time() - start < 10
    body = """.reg .b32 %s; .reg .pred %q; mov.u32 %s, bar; setp.eq.u32 %q, %t, 0;
        @%q mbarrier.init.shared::cta.b64 [%s], 2; bar.sync 0;
    wait: mbarrier.try_wait.parity.shared::cta.b64 %q, [%s], 0; @!%q bra wait;"""
    start = time.process_time()
    with pytest.raises(DeviceFault, match="2 of 2 arrivals and 0 bytes are missing"):
        run(device(), body, [np.zeros(1, np.uint32)], block=1024)
    assert time.process_time() - start < 10
