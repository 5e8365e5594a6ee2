"""What the lanes of a warp do together: shuffles, votes, matches, reductions, elections."""

import numpy as np
import pytest

from tests.emulator.device import DeviceFault
from tests.emulator.ptx import execute
from tests.emulator.test_alu import integers, signed

LANE = np.arange(32)


def shuffled_from(mode, by, clamp, segment):
    """The manual's pseudo code, a lane at a time: (where each lane reads, whether that is in range)."""
    sources, inside = [], []
    for lane in range(32):
        last, first = (lane & segment) | (clamp & ~segment & 31), lane & segment
        j, good = {
            "up": (lane - by[lane], lane - by[lane] >= last),
            "down": (lane + by[lane], lane + by[lane] <= last),
            "bfly": (lane ^ by[lane], (lane ^ by[lane]) <= last),
            "idx": (first | (by[lane] & ~segment), (first | (by[lane] & ~segment)) <= last),
        }[mode]
        sources.append(j if good else lane)
        inside.append(good)
    return np.array(sources), np.array(inside)


@pytest.mark.parametrize("width", [32, 16, 8, 1])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(device, mode, width):
    x = integers(32, 32)
    segment = 32 - width
    clamp = 0 if mode == "up" else 31
    for by in (*(np.full(32, n) for n in (0, 1, 5, 31)), np.random.default_rng(1).integers(0, 32, 32)):
        body = f"""{{ .reg .pred p; shfl.sync.{mode}.b32 %o0|p, %i0, %i1, {segment << 8 | clamp}, 0xffffffff;
            selp.u32 %o1, 1, 0, p; }}"""
        got, there = execute(device(), body, [x, by.astype(np.uint32)], [np.uint32, np.uint32])
        sources, inside = shuffled_from(mode, by, clamp, segment)
        assert (got == x[sources]).all() and (there == inside).all()


def test_shuffle_of_some_lanes(device):
    x = integers(32, 32)
    body = """{ .reg .pred p; setp.lt.u32 p, %t, 16; mov.u32 %o0, 7;
        @p shfl.sync.bfly.b32 %o0, %i0, 3, 31, 0x0000ffff; }"""
    got = execute(device(), body, [x], [np.uint32])[0]
    assert (got[:16] == x[LANE[:16] ^ 3]).all() and (got[16:] == 7).all()


@pytest.mark.parametrize("members", [0xFFFFFFFF, 0x00FF00FF, 0x00000001])
def test_votes(device, members):
    inside = members >> LANE & 1 == 1
    rng = np.random.default_rng(2)
    for x in (rng.integers(0, 2, 32), np.ones(32), np.zeros(32)):
        x = x.astype(np.uint32)
        body = f"""{{ .reg .pred q, in, p; and.b32 %o0, %t, 31; mov.u32 %n, 1; shl.b32 %n, %n, %o0;
            and.b32 %n, %n, {members}; setp.ne.u32 in, %n, 0; setp.ne.u32 q, %i0, 0; mov.u32 %o0, 0; mov.u32 %o1, 0;
            @in vote.sync.ballot.b32 %o0, q, {members};
            @in vote.sync.all.pred p, q, {members}; @p or.b32 %o1, %o1, 1;
            @in vote.sync.any.pred p, q, {members}; @p or.b32 %o1, %o1, 2;
            @in vote.sync.uni.pred p, q, {members}; @p or.b32 %o1, %o1, 4;
            @in vote.sync.all.pred p, !q, {members}; @p or.b32 %o1, %o1, 8; }}"""
        ballot, kinds = execute(device(), body, [x], [np.uint32, np.uint32])
        yes = x[inside] == 1
        want = yes.all() + 2 * yes.any() + 4 * (yes.all() or not yes.any()) + 8 * (not yes.any())
        assert (ballot[inside] == ((x == 1) & inside) @ (1 << LANE)).all()
        assert (kinds[inside] == want).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_matches(device, bits):
    x = np.random.default_rng(3).integers(0, 5, 32).astype(f"u{bits // 8}") << (bits - 8)
    any_mask = execute(device(), f"match.any.sync.b{bits} %o0, %i0, 0xffffffff;", [x], [np.uint32])[0]
    assert (any_mask == [((x == v) @ (1 << LANE)) for v in x]).all()
    body = f"{{ .reg .pred p; match.all.sync.b{bits} %o0|p, %i0, 0xffffffff; selp.u32 %o1, 1, 0, p; }}"
    for values, same in ((x, False), (np.full_like(x, 9), True)):
        mask, equal = execute(device(), body, [values], [np.uint32, np.uint32])
        assert (mask == (0xFFFFFFFF if same else 0)).all() and (equal == same).all()


def test_redux(device):
    x = integers(32, 32)
    numbers, signs = [int(v) for v in x], [signed(v, 32) for v in x]
    want = {
        "add.u32": sum(numbers), "add.s32": sum(numbers), "min.u32": min(numbers), "max.u32": max(numbers),
        "min.s32": min(signs), "max.s32": max(signs),
        "and.b32": int(np.bitwise_and.reduce(x)), "or.b32": int(np.bitwise_or.reduce(x)),
        "xor.b32": int(np.bitwise_xor.reduce(x)),
    }  # fmt: skip
    for name, value in want.items():
        got = execute(device(), f"redux.sync.{name} %o0, %i0, 0xffffffff;", [x], [np.uint32])[0]
        assert (got == value % 2**32).all(), name


def test_elect_and_activemask(device):
    body = """{ .reg .pred p, in; setp.ge.u32 in, %t, 5; mov.u32 %o0, 99; mov.u32 %o1, 0; mov.u32 %o2, 0;
        @in elect.sync %o0|p, 0xffffffe0; @in selp.u32 %o1, 1, 0, p; @in activemask.b32 %o2; }"""
    leader, elected, active = execute(device(), body, [np.zeros(32, np.uint32)], [np.uint32] * 3)
    assert (leader[5:] == 5).all() and elected.tolist() == [0] * 5 + [1] + [0] * 26
    assert (active[5:] == 0xFFFFFFE0).all()


def test_special_registers_of_lanes(device):
    body = "mov.u32 %o0, %laneid; mov.u32 %o1, %lanemask_lt; mov.u32 %o2, %lanemask_ge; mov.u32 %o3, %warpid;"
    lane, less, rest, warp = execute(device(), body, [np.zeros(128, np.uint32)], [np.uint32] * 4, block=64)
    at = np.arange(128)
    assert (lane == at % 32).all() and (warp == at // 32 % 2).all()
    assert (less == (1 << at % 32) - 1).all() and (rest == 0xFFFFFFFF - (1 << at % 32) + 1).all()


def test_a_lane_that_is_no_member_is_named(device):
    with pytest.raises(DeviceFault, match="not in the member mask"):
        execute(device(), "redux.sync.add.u32 %o0, %i0, 0x7fffffff;", [np.zeros(32, np.uint32)], [np.uint32])
