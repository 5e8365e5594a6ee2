"""Loads, stores, atomics and addresses: every width and vector, every space, one instruction at a time."""

import numpy as np
import pytest

from tests.emulator import exact
from tests.emulator.device import DeviceFault
from tests.emulator.exact import BF16, F16, F32
from tests.emulator.ptx import execute, kernel
from tests.emulator.test_alu import SUFFIX, integers, number

ELEMENTS = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "b32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8}


def run(device, body, arrays, *, arch=90, grid=1, block=32, cluster=1, preamble="", **launch):
    """A kernel with the arrays as %p0, %p1, ...; a thread is %t."""
    text = kernel(body, len(arrays), arch, preamble)
    device.load(text).launch("test", grid=grid, block=block, cluster=cluster, args=arrays, **launch)
    return arrays


@pytest.mark.parametrize("space", ["global", "shared", "local", ""])
@pytest.mark.parametrize("kind", ELEMENTS)
def test_values_go_through_memory(device, kind, space):
    """Stored from a register, loaded back with the type's sign: 8-bit numbers fill the 16-bit register."""
    size = ELEMENTS[kind]
    x = integers(8 * max(size, 2), 64)
    preamble = f".shared .align 8 .b8 buffer[{64 * size}];" if space == "shared" else ""
    scratch = np.zeros(64 * size, np.uint8)
    register = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}[size]
    place = {
        "shared": f"mov.u32 %s, buffer; mad.lo.u32 %s, %t, {size}, %s;",
        "local": "mov.u32 %s, scratch;",
        "global": f"mad.wide.u32 %a, %t, {size}, %p2;",
        "": f"mad.wide.u32 %a, %t, {size}, %p2;",
    }[space]
    address = "%s" if space in ("shared", "local") else "%a"
    dot = f".{space}" if space else ""
    body = f"""
        .reg .{register} %x, %y; .reg .b32 %s; .reg .b64 %a; .local .align 8 .b8 scratch[8];
        mad.wide.u32 %at, %t, {x.itemsize}, %p0; ld.global.b{8 * x.itemsize} %x, [%at];
        {place} st{dot}.{kind} [{address}], %x; ld{dot}.{kind} %y, [{address}];
        mad.wide.u32 %at, %t, {x.itemsize}, %p1; st.global.b{8 * x.itemsize} [%at], %y;"""
    out = np.zeros_like(x)
    run(device(), body, [x, out, scratch], block=64, preamble=preamble)
    want = [number(int(v) % 2 ** (8 * size), kind.replace("f", "b")) % 2 ** (8 * x.itemsize) for v in x]
    assert [int(v) for v in out] == want


@pytest.mark.parametrize("kind, width", [(k, w) for k in ("b8", "b16", "b32", "f32") for w in (2, 4)] + [("b64", 2)])
def test_vectors(device, kind, width):
    size = ELEMENTS[kind]
    x = np.random.default_rng(0).integers(0, 256, 32 * size * width, dtype=np.uint8)
    out = np.zeros_like(x)
    register = {1: "b16", 2: "b16", 4: "b32", 8: "b64"}[size]
    straight = ", ".join(f"%x{i}" for i in range(width))
    turned = ", ".join(f"%x{width - 1 - i}" for i in range(width))
    body = f"""
        .reg .{register} %x<4>; .reg .b64 %a, %b;
        mad.wide.u32 %a, %t, {size * width}, %p0; mad.wide.u32 %b, %t, {size * width}, %p1;
        ld.global.v{width}.{kind} {{{straight}}}, [%a]; st.global.v{width}.{kind} [%b], {{{turned}}};"""
    run(device(), body, [x, out])
    assert (out.reshape(32, width, size) == x.reshape(32, width, size)[:, ::-1]).all()


def test_displacements_and_unused_elements(device):
    x, out = np.arange(128, dtype=np.uint32), np.zeros(32, np.uint32)
    body = """.reg .b32 %x<2>; .reg .b64 %a; mad.wide.u32 %a, %t, 16, %p0;
        ld.global.v4.u32 {_, %x0, _, %x1}, [%a]; ld.global.u32 %x0, [%a+4]; add.u32 %x0, %x0, %x1;
        mad.wide.u32 %a, %t, 4, %p1; add.s64 %a, %a, 64; st.global.u32 [%a+-64], %x0;"""
    run(device(), body, [x, out])
    assert (out == x[1::4] + x[3::4]).all()


@pytest.mark.parametrize(
    "form",
    [
        "ca",
        "cg",
        "cs",
        "lu",
        "cv",
        "nc",
        "nc.L1::no_allocate.L2::128B",
        "L1::evict_last",
        "L2::256B",
        "volatile",
        "relaxed.gpu",
        "acquire.sys",
    ],
)
def test_forms_of_a_load(device, form):
    x, out = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    order = form.startswith(("volatile", "relaxed", "acquire"))
    text = f"ld.{form}.global.u32" if order else f"ld.global.{form}.u32"
    body = f""".reg .b32 %x; .reg .b64 %a; mad.wide.u32 %a, %t, 4, %p0; {text} %x, [%a];
        mad.wide.u32 %a, %t, 4, %p1; st.global.u32 [%a], %x;"""
    run(device(), body, [x, out])
    assert (out == x).all()


@pytest.mark.parametrize(
    "form", ["wb", "cg", "cs", "wt", "volatile", "relaxed.gpu", "release.cluster", "L1::no_allocate"]
)
def test_forms_of_a_store(device, form):
    out = np.zeros(32, np.uint32)
    order = form.startswith(("volatile", "relaxed", "release"))
    text = f"st.{form}.global.u32" if order else f"st.global.{form}.u32"
    run(device(), f".reg .b64 %a; mad.wide.u32 %a, %t, 4, %p0; {text} [%a], %t;", [out])
    assert (out == np.arange(32)).all()


def test_constants_and_parameters(device):
    preamble = ".const .align 4 .b32 table[4] = {5, 6, 7, 8}; .global .align 4 .b32 counter = 11;"
    body = """.reg .b32 %x, %y; .reg .b64 %a; mov.u64 %a, table; and.b32 %x, %t, 3; mad.wide.u32 %a, %x, 4, %a;
        ld.const.u32 %x, [%a]; ld.global.u32 %y, [counter]; add.u32 %x, %x, %y;
        mad.wide.u32 %a, %t, 4, %p0; st.global.u32 [%a], %x;"""
    out = np.zeros(32, np.uint32)
    run(device(), body, [out], preamble=preamble)
    assert (out == np.arange(32) % 4 + 16).all()


# ---- Generic addresses
def test_addresses_of_all_spaces(device):
    preamble = ".shared .align 4 .b32 buffer[32];"
    body = """.reg .b64 %a, %b, %g; .reg .b32 %x, %y, %s; .reg .pred p, q, r; .local .align 4 .b32 mine;
        mov.u32 %s, buffer; mad.lo.u32 %s, %t, 4, %s; st.shared.u32 [%s], %t;
        cvt.u64.u32 %a, %s; cvta.shared.u64 %g, %a; ld.u32 %x, [%g];
        cvta.to.shared.u64 %b, %g; cvt.u32.u64 %y, %b; ld.shared.u32 %y, [%y]; add.u32 %x, %x, %y;
        isspacep.shared p, %g; isspacep.global q, %g; isspacep.local r, %g;
        @p add.u32 %x, %x, 1000; @q add.u32 %x, %x, 5000; @r add.u32 %x, %x, 7000;
        mov.u64 %a, mine; st.local.u32 [mine], %t; cvta.local.u64 %g, %a; ld.u32 %y, [%g]; add.u32 %x, %x, %y;
        isspacep.local p, %g; @p add.u32 %x, %x, 10000;
        mad.wide.u32 %a, %t, 4, %p0; cvta.to.global.u64 %b, %a; cvta.global.u64 %g, %b;
        isspacep.global p, %g; @p add.u32 %x, %x, 100000; st.u32 [%g], %x;"""
    out = np.zeros(32, np.uint32)
    run(device(), body, [out], preamble=preamble)
    assert (out == 3 * np.arange(32) + 111000).all()


# ---- Atomics
ATOMIC = {
    "add": lambda old, x, bits: (old + x) % 2**bits,
    "min": lambda old, x, bits: min(old, x),
    "max": lambda old, x, bits: max(old, x),
    "and": lambda old, x, bits: old & x,
    "or": lambda old, x, bits: old | x,
    "xor": lambda old, x, bits: old ^ x,
    "exch": lambda old, x, bits: x,
    "inc": lambda old, x, bits: 0 if old >= x else old + 1,
    "dec": lambda old, x, bits: x if old == 0 or old > x else old - 1,
}
ATOMIC_KINDS = [
    ("add", "u32"),
    ("add", "s32"),
    ("add", "u64"),
    ("exch", "b32"),
    ("exch", "b64"),
    ("inc", "u32"),
    ("dec", "u32"),
]
ATOMIC_KINDS += [(name, kind) for name in ("min", "max") for kind in ("u32", "s32", "u64", "s64")]
ATOMIC_KINDS += [(name, kind) for name in ("and", "or", "xor") for kind in ("b32", "b64")]


@pytest.mark.parametrize("space", ["global", "shared", ""])
@pytest.mark.parametrize("name, kind", ATOMIC_KINDS)
def test_atomics(device, name, kind, space):
    """Each thread on a word of its own: what was there comes back, the result is left; red leaves the same."""
    bits, size = int(kind[1:]), int(kind[1:]) // 8
    old, x = integers(bits, 32, 1), integers(bits, 32, 2)
    memory, before, reduced = old.copy(), np.zeros_like(old), old.copy()
    preamble = f".shared .align 8 .b8 buffer[{32 * size}];" if space == "shared" else ""
    dot = f".{space}" if space else ""
    into = "mov.u32 %s, buffer; mad.lo.u32 %s, %t, SIZE, %s; ld.global.bBITS %w, [%m]; st.shared.bBITS [%s], %w;"
    back = "ld.shared.bBITS %w, [%s]; st.global.bBITS [%m], %w;"
    target = "%s" if space == "shared" else "%m"
    red = f"mad.wide.u32 %m, %t, SIZE, %p3; red.global.{name}.{kind} [%m], %x;" if name != "exch" else ""
    body = f"""
        .reg .bBITS %x, %w, %d; .reg .b64 %m; .reg .b32 %s;
        mad.wide.u32 %at, %t, SIZE, %p1; ld.global.bBITS %x, [%at]; mad.wide.u32 %m, %t, SIZE, %p0;
        {into if space == "shared" else ""} atom{dot}.{name}.{kind} %d, [{target}], %x;
        {back if space == "shared" else ""} mad.wide.u32 %at, %t, SIZE, %p2; st.global.bBITS [%at], %d; {red}"""
    body = body.replace("SIZE", str(size)).replace("BITS", str(bits))
    run(device(), body, [memory, x, before, reduced], preamble=preamble)
    rows = zip(old, x, strict=True)
    want = [ATOMIC[name](number(o, kind), number(v, kind), bits) % 2**bits for o, v in rows]
    assert (before == old).all()
    assert [int(v) for v in memory] == want
    assert name == "exch" or [int(v) for v in reduced] == want


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_compare_and_swap(device, bits):
    old, x = integers(bits, 32, 1), integers(bits, 32, 2)
    expected = np.where(np.arange(32) % 2, old, old ^ old.dtype.type(1))
    memory, before = old.copy(), np.zeros_like(old)
    body = f"""
        .reg .b{bits} %x, %e, %d; .reg .b64 %m;
        mad.wide.u32 %at, %t, {bits // 8}, %p1; ld.global.b{bits} %x, [%at];
        mad.wide.u32 %at, %t, {bits // 8}, %p2; ld.global.b{bits} %e, [%at];
        mad.wide.u32 %m, %t, {bits // 8}, %p0; atom.global.acq_rel.gpu.cas.b{bits} %d, [%m], %e, %x;
        mad.wide.u32 %at, %t, {bits // 8}, %p3; st.global.b{bits} [%at], %d;"""
    run(device(), body, [memory, x, expected, before])
    assert (before == old).all() and (memory == np.where(np.arange(32) % 2, x, old)).all()


FLOAT_ADDS = ["f32", "f64", "noftz.f16", "noftz.bf16", "noftz.f16x2", "noftz.bf16x2"]


@pytest.mark.parametrize("kind", FLOAT_ADDS)
def test_atomic_float_sums(device, kind):
    form = SUFFIX[kind.removeprefix("noftz.").removesuffix("x2")]
    a, b = exact.samples(form, 64, 1), exact.samples(form, 64, 2)
    per = 2 if kind.endswith("x2") else 1
    size = form.bits // 8 * per
    memory = a[: 32 * per].copy()
    body = f"""
        .reg .b{8 * size} %x, %d; .reg .b64 %m;
        mad.wide.u32 %at, %t, {size}, %p1; ld.global.b{8 * size} %x, [%at]; mad.wide.u32 %m, %t, {size}, %p0;
        atom.global.add.{kind} %d, [%m], %x;"""
    run(device(), body, [memory, b])

    def total(x, y):
        if kind == "f32":  # in global memory subnormals are flushed
            x, y = exact.flush(x, F32), exact.flush(y, F32)
            return F32.encode(exact.flush(F32.value(exact.add(x, y, F32)), F32))
        return exact.add(x, y, form)

    exact.assert_same(form, memory, exact.apply(total, form, a[: 32 * per], b[: 32 * per]), (a, b), kind)


def test_shared_float_sums_keep_subnormals(device):
    out = np.zeros(32, np.uint32)
    body = """.reg .b32 %s, %x; mov.u32 %s, buffer; mad.lo.u32 %s, %t, 4, %s; mov.b32 %x, 3; st.shared.b32 [%s], %x;
        red.shared.add.f32 [%s], 0f00000002; ld.shared.b32 %x, [%s];
        mad.wide.u32 %at, %t, 4, %p0; st.global.b32 [%at], %x;"""
    run(device(), body, [out], preamble=".shared .align 4 .b32 buffer[32];")
    assert (out == 5).all()


VECTORS = [("v2", "f16x2", F16), ("v4", "bf16x2", BF16), ("v8", "f16", F16)]
VECTOR_REDUCTIONS = [(name, *v) for name in ("add", "min", "max") for v in VECTORS]


@pytest.mark.parametrize(
    "operation, width, kind, form", [*VECTOR_REDUCTIONS, ("add", "v2", "f32", F32), ("add", "v4", "f32", F32)]
)
def test_vector_reductions(device, width, kind, form, operation):
    n, each = int(width[1:]), 4 if kind.endswith("x2") else form.bits // 8
    size = n * each
    count = 32 * size // (form.bits // 8)
    a, b = exact.samples(form, count, 1), exact.samples(form, count, 2)
    if operation != "add":
        a, b = (np.array([0 if np.isnan(form.value(p)) else p for p in x], x.dtype) for x in (a, b))
    memory, before = a.copy(), np.zeros_like(a)
    names = [f"%x{i}" for i in range(n)]
    loads = " ".join(f"ld.global.b{8 * each} {x}, [%at+{each * i}];" for i, x in enumerate(names))
    stores = " ".join(f"st.global.b{8 * each} [%at+{each * i}], %d{i};" for i in range(n))
    suffix = f"{width}.f32" if kind == "f32" else f"noftz.{width}.{kind}"
    body = f"""
        .reg .b{8 * each} %x<8>, %d<8>; .reg .b64 %m; mad.wide.u32 %at, %t, {size}, %p1; {loads}
        mad.wide.u32 %m, %t, {size}, %p0;
        atom.global.{operation}.{suffix} {{{", ".join(f"%d{i}" for i in range(n))}}}, [%m], {{{", ".join(names)}}};
        mad.wide.u32 %at, %t, {size}, %p2; {stores}"""
    run(device(), body, [memory, b, before])
    assert (before == a).all()

    def result(x, y):
        if operation != "add":
            return form.encode((min if operation == "min" else max)((x, y), key=lambda v: (v, np.copysign(1, v))))
        if form is F32:
            x, y = exact.flush(x, F32), exact.flush(y, F32)
            return F32.encode(exact.flush(F32.value(exact.add(x, y, F32)), F32))
        return exact.add(x, y, form)

    exact.assert_same(form, memory, exact.apply(result, form, a, b), (a, b), f"{operation}.{width}.{kind}")


def test_atomics_on_one_word_lose_nothing(device):
    count = np.zeros(2, np.uint32)
    run(device(), "red.global.add.u32 [%p0], 1; atom.global.max.u32 %n, [%p0+4], %t;", [count], grid=4, block=128)
    assert count.tolist() == [512, 511]


# ---- Clusters
def test_shared_memory_of_the_cluster(device):
    """mapa and getctarank; each block reads, adds to and overwrites its neighbour's memory."""
    preamble = ".shared .align 4 .b32 buffer[96];"
    body = """.reg .b32 %s, %r, %other, %near, %x, %y; .reg .b64 %g, %far;
        mov.u32 %r, %cluster_ctarank; add.u32 %other, %r, 1; and.b32 %other, %other, 3;
        mov.u32 %s, buffer; mov.u32 %x, %tid.x; mad.lo.u32 %s, %x, 4, %s; mov.u32 %y, 0;
        st.shared.u32 [%s], %t; st.shared.u32 [%s+128], %r; st.shared.u32 [%s+256], %y;
        barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;
        mapa.shared::cluster.u32 %near, %s, %other; ld.shared::cluster.u32 %x, [%near];
        cvt.u64.u32 %g, %s; cvta.shared.u64 %g, %g; mapa.u64 %far, %g, %other;
        ld.u32 %y, [%far+128]; mad.lo.u32 %x, %y, 1000, %x;
        getctarank.shared::cluster.u32 %y, %near; mad.lo.u32 %x, %y, 10000, %x;
        getctarank.u64 %y, %far; mad.lo.u32 %x, %y, 100000, %x;
        red.shared::cluster.add.u32 [%near+256], %r;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ld.shared.u32 %y, [%s+256]; mad.lo.u32 %x, %y, 1000000, %x;
        mad.wide.u32 %at, %t, 4, %p0; st.global.u32 [%at], %x;"""
    out = np.zeros(4 * 32, np.uint32)
    run(device(), body, [out], preamble=preamble, grid=4, cluster=4)
    rank, lane = np.arange(128) // 32, np.arange(128) % 32
    other, before = (rank + 1) % 4, (rank - 1) % 4
    assert (out == 32 * other + lane + other * 111000 + before * 1000000).all()


def test_what_is_not_emulated_is_named(device):
    out = np.zeros(64, np.uint32)
    with pytest.raises(DeviceFault, match="floating-point atomics"):
        run(device(), "atom.global.exch.f32 %n, [%p0], 0f00000000;", [out])
    with pytest.raises(DeviceFault, match=r"red\.async"):
        run(device(), "red.async.relaxed.cluster.global.add.u32 [%p0], 1, [%p0];", [out])


def test_execute_refuses_nothing_silently(device):
    """A modifier that nobody asked for is an error that names it."""
    with pytest.raises(DeviceFault, match=r"does not know \.fancy"):
        execute(device(), "add.fancy.u32 %o0, %i0, %i0;", [np.zeros(32, np.uint32)], [np.uint32])
