"""PTX for a test of one instruction: each thread loads its inputs, does what the test says, and stores its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.emulator.device import Device

# By bytes of an element: the register's type, and the suffix of ld and st.
_REGISTER = {1: ("b16", "b8"), 2: ("b16", "b16"), 4: ("b32", "b32"), 8: ("b64", "b64")}

HEADER = """
.version 9.0
.target {target}
.address_size 64
"""


def target(arch: int) -> str:
    return "sm_90a" if arch == 90 else f"sm_{arch}"


def kernel(body: str, parameters: int, arch: int, preamble: str = "") -> str:
    """A module with a kernel ``test``: its 64-bit parameters are %p0, %p1, ...; %t is the thread's global index."""
    names = [f"p{i}" for i in range(parameters)]
    signature = ", ".join(f".param .u64 {n}" for n in names)
    loads = "\n".join(f"ld.param.u64 %{n}, [{n}];" for n in names)
    return f"""{HEADER.format(target=target(arch))}{preamble}
.visible .entry test({signature}) {{
.reg .b64 %p<{parameters + 1}>; .reg .b32 %t, %block, %n; .reg .b64 %at;
mov.u32 %t, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %n, %ntid.x; mad.lo.u32 %t, %block, %n, %t;
{loads}
{body}
ret;
}}
"""


def execute(
    device: Device,
    body: str,
    inputs: Sequence[np.ndarray],
    outputs: Sequence[np.dtype | type],
    *,
    arch: int = 90,
    block: int = 32,
    preamble: str = "",
) -> list[np.ndarray]:
    """Run ``body`` once a thread: thread t has element t of input i in %i{i}, and leaves output i in %o{i}.

    The number of threads is the inputs' length, a multiple of ``block``.
    """
    n = len(inputs[0])
    assert n % block == 0 and all(len(x) == n for x in inputs)
    lines = []
    for i, x in enumerate(inputs):
        register, load = _REGISTER[x.itemsize]
        lines.append(f".reg .{register} %i{i};")
        lines.append(f"mad.wide.u32 %at, %t, {x.itemsize}, %p{i}; ld.global.{load} %i{i}, [%at];")
    stores = []
    results = [np.zeros(n, dtype) for dtype in outputs]
    for i, r in enumerate(results):
        register, store = _REGISTER[r.itemsize]
        lines.append(f".reg .{register} %o{i};")
        parameter = f"%p{len(inputs) + i}"
        stores.append(f"mad.wide.u32 %at, %t, {r.itemsize}, {parameter}; st.global.{store} [%at], %o{i};")
    text = kernel("\n".join([*lines, body, *stores]), len(inputs) + len(results), arch, preamble)
    arrays = [np.ascontiguousarray(x) for x in inputs]
    device.load(text).launch("test", grid=n // block, block=block, args=[*arrays, *results], readonly=arrays)
    return results
