"""How many warp instructions a second the emulator runs, by kind: processor time of one thread, all checks on.

python -m tests.emulator.speed
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from tests.emulator import device as emulated
from tests.emulator.ptx import kernel

WARPS, UNROLLED = 4, 16
SHARED_BYTES = 32768
# By name: declarations, run once; and the instruction, {i} being different numbers. %a is 16 bytes a lane apart in
# shared memory, %g 16 bytes a lane apart in global memory.
KINDS = {
    "integer": ("", "add.s32 %r{i}, %r{i}, 7;"),
    "fp32": ("", "fma.rn.f32 %f{i}, %f{i}, %f1, %f2;"),
    "two halves": ("", "fma.rn.bf16x2 %r{i}, %r{i}, %r1, %r2;"),
    "convert": ("", "cvt.rn.bf16x2.f32 %r{i}, %f{i}, %f1;"),
    "special": ("", "ex2.approx.ftz.f32 %f{i}, %f{i};"),
    "shuffle": ("", "shfl.sync.bfly.b32 %r{i}, %r{i}, 1, 31, 0xffffffff;"),
    "compare, branch": ("", "setp.lt.s32 %q, %r{i}, 0; @%q bra end;"),
    "shared, 4 bytes": ("", "ld.shared.b32 %r{i}, [%a];"),
    "shared, 16 bytes": ("", "ld.shared.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a];"),
    "store shared, 16 bytes": ("", "st.shared.v4.b32 [%a], {{%r0, %r1, %r2, %r3}};"),
    "global, 4 bytes": ("", "ld.global.b32 %r{i}, [%g];"),
    "global, 16 bytes": ("", "ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%g];"),
    "store global, 16 bytes": ("", "st.global.v4.b32 [%g], {{%r0, %r1, %r2, %r3}};"),
    "cp.async, 16 bytes": ("", "cp.async.cg.shared.global [%a], [%g], 16; cp.async.wait_all;"),
    "ldmatrix.x4": ("", "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r0, %r1, %r2, %r3}}, [%a];"),
    "barrier": ("", "bar.sync 0;"),
    "mma m16n8k16 bf16": (
        "",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, "
        "{{%r4, %r5}}, {{%f0, %f1, %f2, %f3}};",
    ),
    "mma m16n8k8 tf32": (
        "",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, "
        "{{%r4, %r5}}, {{%f0, %f1, %f2, %f3}};",
    ),
    "wgmma m64n128k16 bf16": (
        ".reg .b64 %d; .reg .f32 %w<64>; mov.u32 %n_rounds, s; shr.u32 %n_rounds, %n_rounds, 4; "
        "cvt.u64.u32 %d, %n_rounds; or.b64 %d, %d, 0x4000004000010000; mov.u32 %n_rounds, 0; wgmma.fence.sync.aligned;",
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {{"
        + ", ".join(f"%w{i}" for i in range(64))
        + "}}, %d, %d, 1, 1, 1, 0, 0;",
    ),
}


def text(declarations: str, instruction: str, rounds: int) -> str:
    """A kernel that runs the instruction so many times, on what holds small numbers everywhere."""
    fill = f"""
        mov.u32 %a, s; mad.lo.u32 %a, %t, 16, %a; mov.u32 %n_rounds, 0;
        fill: st.shared.v4.b32 [%a], {{%r0, %r1, %r2, %r3}};
        add.u32 %a, %a, {16 * 32 * WARPS}; add.u32 %n_rounds, %n_rounds, 1;
        setp.lt.u32 %more, %n_rounds, {SHARED_BYTES // (16 * 32 * WARPS)}; @%more bra fill;
        fence.proxy.async; bar.sync 0;"""
    body = "\n".join(instruction.format(i=i) for i in range(UNROLLED))
    return kernel(
        f"""
        .reg .b32 %r<{UNROLLED}>, %a, %n_rounds; .reg .f32 %f<{UNROLLED}>; .reg .b64 %g; .reg .pred %q, %more;
        {"".join(f"mov.b32 %r{i}, 0x3f803f8{i:x}; mov.b32 %f{i}, 0f3f80000{i:x};" for i in range(UNROLLED))}
        {fill}
        mov.u32 %a, s; mad.lo.u32 %a, %t, 16, %a; mad.wide.u32 %g, %t, 16, %p0; mov.u32 %n_rounds, 0;
        {declarations}
        again: {body}
        add.u32 %n_rounds, %n_rounds, 1; setp.lt.u32 %more, %n_rounds, {rounds}; @%more bra again;
        end:
        """,
        1,
        90,
        f".shared .align 1024 .b8 s[{SHARED_BYTES}];",
    )


def seconds(declarations: str, instruction: str, rounds: int) -> float:
    """Of processor time, least of three."""
    module = emulated.Device(arch=90, stall_limit=2_000_000_000).load(text(declarations, instruction, rounds))
    memory = np.zeros(4 * 32 * WARPS, np.float32)
    taken = []
    for _ in range(3):
        start = time.process_time()
        module.launch("test", block=32 * WARPS, args=[memory])
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    cmake = Path(sys.executable).parent / "cmake"
    emulated.build(str(cmake) if cmake.exists() else "cmake")
    for kind, (declarations, instruction) in KINDS.items():
        per_round = instruction.count(";") * UNROLLED * WARPS
        few, many = 4, 4
        while (spent := seconds(declarations, instruction, many)) < 0.1:
            many *= 4
        spent -= seconds(declarations, instruction, few)
        print(f"{kind:24} {per_round * (many - few) / spent / 1e6:8.2f} million a second", flush=True)


if __name__ == "__main__":
    main()
