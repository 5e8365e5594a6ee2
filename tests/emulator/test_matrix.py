"""ldmatrix, stmatrix, movmatrix, mma.sync and wgmma: where every element lies, by formulas taken from the PTX manual's
figures; whole numbers, so that any arithmetic gives the same (test_tensor_core.py has the arithmetic)."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.emulator.device import DeviceFault
from tests.emulator.exact import BF16, E4M3, E5M2, F16, TF32
from tests.emulator.ptx import execute, kernel

LANE = np.arange(32)
GROUP, THREAD = LANE // 4, LANE % 4  # "groupID", "threadID_in_group"


# ---- 8 x 8 matrices of 16 bits
@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(device, count, trans):
    """Lane 8 m + r points to row r of matrix m; lane l holds (l / 4, 2 (l % 4)) and the next, or the transpose's."""
    matrices = np.random.default_rng(1).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    names = "{" + ", ".join(f"%r{i}" for i in range(count)) + "}"
    words = range(0, 4 * count, 4)
    rows = np.random.default_rng(2).permutation(8 * count)  # rows lie anywhere
    places = np.resize(16 * rows, 32).astype(np.uint32)
    stores = " ".join(
        f"mad.wide.u32 %at, %t, {4 * count}, %p2; st.global.b32 [%at+{4 * i}], %r{i};" for i in range(count)
    )
    body = f"""
        .reg .b32 %r<4>, %s, %row; .reg .b32 %w; mov.u32 %s, buffer;
        mad.wide.u32 %at, %t, {4 * count}, %p0; mad.lo.u32 %row, %t, {4 * count}, %s;
        {" ".join(f"ld.global.b32 %w, [%at+{4 * i}]; st.shared.b32 [%row+{4 * i}], %w;" for i in range(count))}
        bar.sync 0; mad.wide.u32 %at, %t, 4, %p1; ld.global.u32 %row, [%at]; add.u32 %row, %row, %s;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {names}, [%row]; {stores}
        add.u32 %row, %row, {128 * count};
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%row], {names}; bar.sync 0;
        mad.lo.u32 %row, %t, {4 * count}, %s; mad.wide.u32 %at, %t, {4 * count}, %p3;
        {" ".join(f"ld.shared.b32 %w, [%row+{128 * count + i}]; st.global.b32 [%at+{i}], %w;" for i in words)}"""
    memory = np.zeros((8 * count, 8), np.uint16)
    memory[rows] = matrices.reshape(-1, 8)
    registers, back = np.zeros((32, count, 2), np.uint16), np.zeros_like(memory)
    text = kernel(body, 4, 90, f".shared .align 16 .b8 buffer[{256 * count}];")
    device().load(text).launch("test", block=32, args=[memory, places, registers, back])
    held = np.swapaxes(matrices, 1, 2) if trans else matrices
    for h in (0, 1):
        assert (registers[:, :, h] == held[:, GROUP, 2 * THREAD + h].T).all()
    assert (back == memory).all(), "what was loaded is stored to the same places"


def test_movmatrix(device):
    matrix = np.random.default_rng(3).integers(0, 2**16, (8, 8)).astype(np.uint16)
    halves = np.stack([matrix[GROUP, 2 * THREAD], matrix[GROUP, 2 * THREAD + 1]], 1)
    got = execute(
        device(), "movmatrix.sync.aligned.m8n8.trans.b16 %o0, %i0;", [halves.view(np.uint32)[:, 0]], [np.uint32]
    )
    got = got[0].view(np.uint16).reshape(32, 2)
    assert all((got[:, h] == matrix.T[GROUP, 2 * THREAD + h]).all() for h in (0, 1))


# ---- mma.sync m16n8k*: row and column of element i of a fragment, for all lanes ("Matrix Fragments for mma.m16n8k*").
def half(i, size):  # 0 or 1: in which of the alternating runs of `size` elements i lies
    return i // size % 2


A_PLACE = {  # bytes of an element, k -> (row, k) of element i
    (2, 8): lambda i: (GROUP + 8 * half(i, 2), 2 * THREAD + i % 2),
    (2, 16): lambda i: (GROUP + 8 * half(i, 2), 2 * THREAD + i % 2 + 8 * (i >= 4)),
    (4, 4): lambda i: (GROUP + 8 * i, THREAD),
    (4, 8): lambda i: (GROUP + 8 * (i % 2), THREAD + 4 * (i >= 2)),
    (1, 16): lambda i: (GROUP + 8 * (i >= 4), 4 * THREAD + i % 4),
    (1, 32): lambda i: (GROUP + 8 * half(i, 4), 4 * THREAD + i % 4 + 16 * (i >= 8)),
}
B_PLACE = {  # (k, column)
    (2, 8): lambda i: (2 * THREAD + i, GROUP),
    (2, 16): lambda i: (2 * THREAD + i % 2 + 8 * (i >= 2), GROUP),
    (4, 4): lambda i: (THREAD, GROUP),
    (4, 8): lambda i: (THREAD + 4 * i, GROUP),
    (1, 16): lambda i: (4 * THREAD + i, GROUP),
    (1, 32): lambda i: (4 * THREAD + i % 4 + 16 * (i >= 4), GROUP),
}


def c_place(i):
    return GROUP + 8 * (i >= 2), 2 * THREAD + i % 2


@dataclass(frozen=True)
class Integer:
    """What exact.Format is to floats: whole numbers as bit patterns."""

    signed: bool
    bits: int = 8

    def encode(self, x):
        return int(x) % 2**self.bits


S8, U8 = Integer(True), Integer(False)
INPUTS = {"bf16": BF16, "f16": F16, "tf32": TF32, "e4m3": E4M3, "e5m2": E5M2, "s8": S8, "u8": U8}


def patterns(matrix, form):
    return np.vectorize(form.encode, otypes=[np.uint64])(matrix)


def whole_numbers(rng, shape, form, most=8):
    low = 0 if isinstance(form, Integer) and not form.signed else -most
    limit = 4 if form is E5M2 else most  # e5m2 has 3 significant bits
    return rng.integers(max(low, -limit), limit + 1, shape)


def registers(matrix, place, count, bits):
    """A fragment of ``count`` elements a lane, packed into 32-bit registers, the first element lowest."""
    per = 32 // bits
    elements = np.stack([matrix[place(i)] for i in range(count)], 1).astype(np.uint64).reshape(32, -1, per)
    words = (elements << (bits * np.arange(per, dtype=np.uint64))).sum(-1).astype(np.uint32)
    return [np.ascontiguousarray(words[:, q]) for q in range(words.shape[1])]


MMA = [
    *[("f32", t, t, k, arch) for t in ("bf16", "f16") for k in (8, 16) for arch in (80, 90)],
    *[("f16", "f16", "f16", k, 90) for k in (8, 16)],
    *[("f32", "tf32", "tf32", k, 80) for k in (4, 8)],
    *[(d, t, t, k, 90) for d in ("f32", "f16") for t in ("e4m3", "e5m2") for k in (16, 32)],
    *[("s32", a, b, k, 80) for a in ("s8", "u8") for b in ("s8", "u8") for k in (16, 32)],
]


@pytest.mark.parametrize("d, a_type, b_type, k, arch", MMA)
def test_mma(device, d, a_type, b_type, k, arch):
    rng = np.random.default_rng(k)
    form, b_form = INPUTS[a_type], INPUTS[b_type]
    bits = 32 if a_type == "tf32" else form.bits
    a, b = whole_numbers(rng, (16, k), form), whole_numbers(rng, (k, 8), b_form)
    c = rng.integers(-100, 100, (16, 8))
    inputs = registers(patterns(a, form), A_PLACE[bits // 8, k], k // 2, bits)
    a_count = len(inputs)
    inputs += registers(patterns(b, b_form), B_PLACE[bits // 8, k], k // 4, bits)
    b_count = len(inputs) - a_count
    c_bits = {"f32": c.astype(np.float32).view(np.uint32), "s32": c.astype(np.uint32), "f16": patterns(c, F16)}[d]
    inputs += registers(c_bits, c_place, 4, 16 if d == "f16" else 32)
    names = iter(f"%i{i}" for i in range(len(inputs)))
    take = lambda count: "{" + ", ".join(next(names) for _ in range(count)) + "}"  # noqa: E731
    results = 2 if d == "f16" else 4
    out = "{" + ", ".join(f"%o{i}" for i in range(results)) + "}"
    body = f"mma.sync.aligned.m16n8k{k}.row.col.{d}.{a_type}.{b_type}.{d} {out}, "
    body += f"{take(a_count)}, {take(b_count)}, {take(results)};"
    got = np.stack(execute(device(arch=arch), body, inputs, [np.uint32] * results, arch=arch), 1)
    want = a @ b + c
    for i in range(4):
        if d == "f16":
            element = got.view(np.float16).reshape(32, 4)[:, i]
        else:
            element = np.ascontiguousarray(got[:, i]).view(np.float32 if d == "f32" else np.int32)
        assert (element == want[c_place(i)]).all(), f"element {i}"


def test_integer_mma_saturates_or_wraps(device):
    big = np.full(32, 0x7F7F7F7F, np.uint32)
    c = np.full(32, 2**31 - 1, np.uint32)
    for clamp, want in ((".satfinite", 2**31 - 1), ("", (2**31 - 1 + 32 * 127 * 127) % 2**32)):
        body = f"""mma.sync.aligned.m16n8k32.row.col{clamp}.s32.s8.s8.s32 {{%o0, %o1, %o2, %o3}},
            {{%i0, %i0, %i0, %i0}}, {{%i0, %i0}}, {{%i1, %i1, %i1, %i1}};"""
        assert all((r == want).all() for r in execute(device(), body, [big, c], [np.uint32] * 4))


@pytest.mark.parametrize(
    "form", ["m8n8k4.row.col.f64.f64.f64.f64", "m16n8k16.row.col.f32.e4m3.e4m3.f32", "m16n8k64.row.col.s32.s4.s4.s32"]
)
def test_forms_of_mma_that_are_missing_are_named(device, form):
    body = f"mma.sync.aligned.{form} {{%o0}}, {{%i0}}, {{%i0}}, {{%i0}};"
    with pytest.raises(DeviceFault, match=r"mma\.sync\.aligned.* is not emulated"):
        execute(device(), body, [np.zeros(32, np.uint32)], [np.uint32])


# ---- wgmma: images of A and B in shared memory by the canonical layouts ("Shared Memory Matrix Layout")
SWIZZLE_CODE = {0: 0, 128: 1, 64: 2, 32: 3}  # by width in bytes: bits 62 and 63 of a descriptor


def swizzle(x, width):
    """A pattern of 8 rows: 16-byte pieces change places within a row of `width` bytes."""
    return x if width == 0 else x ^ ((x >> 7) & (width // 16 - 1)) << 4


@dataclass
class Image:
    """An (mn, k) matrix as bytes of shared memory; ``start`` is the offset of the product's first k."""

    matrix: np.ndarray  # bit patterns
    size: int  # bytes of an element
    width: int  # of the swizzle, 0 for none
    mn_major: bool = False
    start: int = 0
    offsets: np.ndarray = field(init=False)
    leading: int = field(init=False)
    stride: int = field(init=False)

    def __post_init__(self):
        mn, k = np.indices(self.matrix.shape)
        rows, columns = self.matrix.shape
        if not self.mn_major and self.width:  # rows of `width` bytes along k, 8 to an atom
            self.leading, self.stride = 16, 8 * self.width
            assert columns * self.size <= self.width
            x = mn // 8 * self.stride + mn % 8 * self.width + k * self.size
        elif not self.mn_major:  # core matrices of 8 rows by 16 bytes
            self.leading, self.stride = 128, 128 * (columns * self.size // 16)
            x = mn // 8 * self.stride + k * self.size // 16 * self.leading + mn % 8 * 16 + k * self.size % 16
        elif self.width:  # rows of `width` bytes along mn, one for each k, 8 to an atom
            self.stride, self.leading = 8 * self.width, self.width * columns
            along = mn * self.size
            x = along // self.width * self.leading + k // 8 * self.stride + k % 8 * self.width + along % self.width
        else:
            self.stride, self.leading = 128, 128 * (rows * self.size // 16)
            along = mn * self.size
            x = along // 16 * self.stride + k // 8 * self.leading + k % 8 * 16 + along % 16
        self.offsets = swizzle(x, self.width)

    def bytes(self, total=None):
        image = np.full(total or (self.offsets.max() + 512) // 512 * 512, 0xFF, np.uint8)
        for i in range(self.size):
            image[self.offsets + i] = self.matrix >> np.uint64(8 * i) & np.uint64(255)
        return image

    def descriptor(self, base):
        code = SWIZZLE_CODE[self.width]
        return (base + self.start) >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | code << 62


AREA_A = 8192  # bytes; B's image follows


def wgmma(device, name, a, b, c, d_type, suffix, *, a_registers=None, scale_d="1", **settings):
    """D (64, n) of one wgmma: A an Image or fragments of registers, B an Image, C the accumulators' patterns."""
    n = b.matrix.shape[0]
    count = n // 4 if d_type == "f16" else n // 2
    kind = "f32" if d_type == "f32" else "b32"
    d = ", ".join(f"%d{i}" for i in range(count))
    at = lambda i: f"[%at+{4 * i}]"  # noqa: E731
    fragments = 0 if a_registers is None else len(a_registers)
    memory = np.concatenate([np.zeros(AREA_A, np.uint8) if a is None else a.bytes(AREA_A), b.bytes()])
    operand = "%da" if a_registers is None else "{" + ", ".join(f"%a{i}" for i in range(fragments)) + "}"
    body = f"""
        .reg .{kind} %d<{count}>; .reg .b32 %s, %w, %a<4>, %i; .reg .b64 %da, %db; .reg .pred %more, %p;
        mov.u32 %s, buffer; mov.u32 %i, %tid.x;
    fill: mul.wide.u32 %at, %i, 4; add.u64 %at, %at, %p0; ld.global.b32 %w, [%at];
        shl.b32 %n, %i, 2; add.u32 %n, %n, %s; st.shared.b32 [%n], %w;
        add.u32 %i, %i, 128; setp.lt.u32 %more, %i, {len(memory) // 4}; @%more bra fill;
        fence.proxy.async.shared::cta; bar.sync 0;
        mad.wide.u32 %at, %t, {4 * count}, %p1; {" ".join(f"ld.global.{kind} %d{i}, {at(i)};" for i in range(count))}
        mad.wide.u32 %at, %t, {max(4 * fragments, 4)}, %p2;
        {" ".join(f"ld.global.b32 %a{i}, {at(i)};" for i in range(fragments))}
        mov.u64 %da, {0 if a_registers is not None else a.descriptor(0)}; mov.u64 %db, {b.descriptor(AREA_A)};
        setp.eq.u32 %p, 0, 0;
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sync.aligned.{name} {{{d}}}, {operand}, %db, {scale_d}{suffix};
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
        mad.wide.u32 %at, %t, {4 * count}, %p1; {" ".join(f"st.global.{kind} {at(i)}, %d{i};" for i in range(count))}"""
    thread = np.arange(128)
    row, column = (
        (lambda i: 16 * (thread // 32) + thread % 32 // 4 + 8 * half(i, 2)),
        (lambda i: 8 * (i // 4) + 2 * (thread % 4) + i % 2),
    )
    elements = np.stack([c[row(i), column(i)] for i in range(n // 2)], 1)
    packed = np.ascontiguousarray(elements.astype(np.uint16 if d_type == "f16" else np.uint32)).view(np.uint32)
    held = np.zeros((128, 1), np.uint32) if a_registers is None else np.ascontiguousarray(np.stack(a_registers, 1))
    text = kernel(body, 3, 90, f".shared .align 1024 .b8 buffer[{len(memory)}];")
    device(**settings).load(text).launch("test", block=128, args=[memory, packed, held])
    types = {"f32": np.float32, "f16": np.float16, "s32": np.int32}
    results = packed.view(types[d_type]).reshape(128, n // 2)
    out = np.zeros((64, n))
    for i in range(n // 2):
        out[row(i), column(i)] = results[:, i]
    return out


def accumulators(c, d_type):
    return {"f32": lambda: c.astype(np.float32).view(np.uint32), "s32": lambda: c.astype(np.int32).view(np.uint32),
            "f16": lambda: c.astype(np.float16).view(np.uint16)}[d_type]()  # fmt: skip


def problem(kind, n, d_type="f32", k_steps=1):
    form = INPUTS[kind]
    size = 4 if kind == "tf32" else form.bits // 8
    rng = np.random.default_rng(n)
    k = 32 // size * k_steps
    a, b = whole_numbers(rng, (64, k), form), whole_numbers(rng, (n, k), form)
    c = rng.integers(-100, 100, (64, n))
    return form, size, a, b, c


WIDTHS = [0, 32, 64, 128]


@pytest.mark.parametrize("b_width", WIDTHS)
@pytest.mark.parametrize("a_width", WIDTHS)
@pytest.mark.parametrize("a_major, b_major", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_wgmma_layouts(device, kind, a_major, b_major, a_width, b_width):
    """16-bit operands, K-major or MN-major, in every swizzle."""
    form, size, a, b, c = problem(kind, 64)
    images = [Image(patterns(x, form), size, w, bool(m)) for x, w, m in ((a, a_width, a_major), (b, b_width, b_major))]
    got = wgmma(
        device, f"m64n64k16.f32.{kind}.{kind}", *images, accumulators(c, "f32"), "f32", f", 1, 1, {a_major}, {b_major}"
    )
    assert (got == a @ b.T + c).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", [8, 24, 96, 256])
@pytest.mark.parametrize(
    "kind, d_type",
    [("tf32", "f32"), ("e4m3", "f32"), ("e5m2", "f16"), ("s8", "s32"), ("u8", "s32"), ("f16", "f16"), ("bf16", "f32")],
)
def test_wgmma_types_and_widths(device, kind, d_type, n, width):
    form, size, a, b, c = problem(kind, n, d_type)
    k = a.shape[1]
    suffix = "" if d_type == "s32" else ", 1, 1" + (", 0, 0" if size == 2 else "")
    images = [Image(patterns(x, form), size, width) for x in (a, b)]
    got = wgmma(device, f"m64n{n}k{k}.{d_type}.{kind}.{kind}", *images, accumulators(c, d_type), d_type, suffix)
    assert (got == a @ b.T + c).all()


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kind", ["bf16", "tf32", "e4m3"])
def test_wgmma_steps_along_k(device, kind, width):
    """The next k of a swizzled tile: the start address moves by 32 bytes, the pattern does not."""
    steps = width // 32
    form, size, a, b, c = problem(kind, 32, k_steps=steps)
    per = a.shape[1] // steps
    suffix = ", 1, 1" + (", 0, 0" if size == 2 else "")
    for step in range(steps):
        images = [Image(patterns(x, form), size, width, start=32 * step) for x in (a, b)]
        got = wgmma(device, f"m64n32k{per}.f32.{kind}.{kind}", *images, accumulators(c, "f32"), "f32", suffix)
        part = slice(per * step, per * (step + 1))
        assert (got == a[:, part] @ b[:, part].T + c).all()


NEGATED = [(k, d, s) for k, d in (("bf16", "f32"), ("f16", "f16"), ("tf32", "f32"), ("e4m3", "f32")) for s in range(4)]


@pytest.mark.parametrize("kind, d_type, signs", [*NEGATED, ("s8", "s32", 0)])
def test_wgmma_from_registers_and_negated(device, kind, d_type, signs):
    """A in the fragments of mma.m16n8k*, a warp 16 rows; operands of floats negated."""
    signs = (1 - 2 * (signs & 1), 1 - (signs & 2))
    form, size, a, b, c = problem(kind, 40, d_type)
    k = a.shape[1]
    bits = patterns(a, form)
    warps = [registers(bits[16 * w : 16 * w + 16], A_PLACE[size, k], k // 2, 8 * size) for w in range(4)]
    held = [np.concatenate([w[q] for w in warps]) for q in range(len(warps[0]))]
    suffix = "" if d_type == "s32" else f", {signs[0]}, {signs[1]}" + (", 0" if size == 2 else "")
    image = Image(patterns(b, form), size, 128)
    name = f"m64n40k{k}.{d_type}.{kind}.{kind}"
    got = wgmma(device, name, None, image, accumulators(c, d_type), d_type, suffix, a_registers=held)
    assert (got == signs[0] * signs[1] * (a @ b.T) + c).all()
    if d_type != "s32":  # the same from shared memory
        suffix = f", {signs[0]}, {signs[1]}" + (", 0, 0" if size == 2 else "")
        got = wgmma(device, name, Image(bits, size, 128), image, accumulators(c, d_type), d_type, suffix)
        assert (got == signs[0] * signs[1] * (a @ b.T) + c).all()


@pytest.mark.parametrize("scale, adds", [("1", True), ("0", False), ("%p", True), ("!%p", False)])
def test_wgmma_adds_or_replaces(device, scale, adds):
    form, size, a, b, c = problem("bf16", 16)
    images = [Image(patterns(x, form), size, 128) for x in (a, b)]
    got = wgmma(
        device, "m64n16k16.f32.bf16.bf16", *images, accumulators(c, "f32"), "f32", ", 1, 1, 0, 0", scale_d=scale
    )
    assert (got == a @ b.T + (c if adds else 0)).all()


def test_wgmma_of_integers_clamps(device):
    form, size, a, b, c = problem("s8", 8, "s32")
    c[:] = 2**31 - 1
    a[:], b[:] = 100, 100
    images = [Image(patterns(x, form), size, 128) for x in (a, b)]
    got = wgmma(device, "m64n8k32.satfinite.s32.s8.s8", *images, accumulators(c, "s32"), "s32", "")
    assert (got == 2**31 - 1).all()
    got = wgmma(device, "m64n8k32.s32.s8.s8", *images, accumulators(c, "s32"), "s32", "")
    assert (got == 2**31 - 1 + 320000 - 2**32).all()
