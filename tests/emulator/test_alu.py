"""Arithmetic, logic, comparison and selection, an instruction at a time, beside Python's integers and exact.py."""

import math
import struct

import numpy as np
import pytest

from tests.emulator import exact
from tests.emulator.device import DeviceFault
from tests.emulator.exact import BF16, F16, F32, F64
from tests.emulator.ptx import execute

COUNT = 96


def integers(bits, count=COUNT, seed=0):
    """Unsigned patterns: the edges, small numbers of either sign, and anything."""
    rng = np.random.default_rng(seed)
    edges = [0, 1, 2, 2**bits - 1, 2**bits - 2, 2 ** (bits - 1), 2 ** (bits - 1) - 1, 2 ** (bits - 1) + 1]
    small = [int(x) % 2**bits for x in rng.integers(-40, 40, count)]
    anything = [int.from_bytes(rng.bytes(bits // 8), "little") for _ in range(count)]
    mixed = edges + [x for pair in zip(small, anything, strict=True) for x in pair]
    return rng.permutation(np.array(mixed[:count], f"u{bits // 8}"))


def signed(x, bits):
    x = int(x) % 2**bits
    return x - 2**bits if x >> (bits - 1) else x


def number(x, kind):
    """The integer that a pattern stands for, by the type's name: s32, u16, b64."""
    bits = int(kind[1:])
    return signed(x, bits) if kind[0] == "s" else int(x)


def check(device, body, inputs, dtype, want, **how):
    got = execute(device(), body, inputs, [dtype], **how)[0]
    wrong = [i for i in range(len(got)) if int(got[i]) != int(want[i])]
    if wrong:
        i = wrong[0]
        values = ", ".join(hex(int(x[i])) for x in inputs)
        raise AssertionError(f"{body}: of ({values}): {int(got[i]):#x}, expected {int(want[i]):#x}")


def check_integer(device, instruction, kinds, function, result, seeds=(0, 1, 2, 3)):
    """instruction d, a, b...: operands of these kinds, a result of a kind; the function works on Python's integers."""
    inputs = [integers(int(k[1:]), seed=s) for k, s in zip(kinds, seeds, strict=False)]
    bits = int(result[1:])
    rows = zip(*inputs, strict=True)
    want = [function(*(number(x, k) for x, k in zip(row, kinds, strict=True))) % 2**bits for row in rows]
    names = ", ".join(f"%i{i}" for i in range(len(kinds)))
    check(device, f"{instruction} %o0, {names};", inputs, np.dtype(f"u{bits // 8}"), want)


def truncated_division(a, b, bits):
    if b == 0:
        return -1  # what hardware gives; the manual leaves it open
    return int(math.copysign(1, a) * math.copysign(1, b)) * (abs(a) // abs(b))


def truncated_remainder(a, b, bits):
    return a if b == 0 else a - b * truncated_division(a, b, bits)


TWO = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "div": truncated_division,
    "rem": truncated_remainder,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
}
THREE = {
    "mad.lo": lambda a, b, c, bits: a * b + c,
    "mad.hi": lambda a, b, c, bits: (a * b >> bits) + c,
    "sad": lambda a, b, c, bits: c + abs(a - b),
}
NUMBERS = ["s16", "u16", "s32", "u32", "s64", "u64"]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", TWO)
def test_integer_arithmetic(device, name, kind):
    check_integer(device, f"{name}.{kind}", [kind] * 2, lambda a, b: TWO[name](a, b, int(kind[1:])), kind)


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", THREE)
def test_integer_arithmetic_of_three(device, name, kind):
    check_integer(device, f"{name}.{kind}", [kind] * 3, lambda a, b, c: THREE[name](a, b, c, int(kind[1:])), kind)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(device, kind):
    double = kind[0] + str(2 * int(kind[1:]))
    check_integer(device, f"mul.wide.{kind}", [kind] * 2, lambda a, b: a * b, double)
    check_integer(device, f"mad.wide.{kind}", [kind, kind, double], lambda a, b, c: a * b + c, double)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_negation_and_magnitude(device, kind):
    check_integer(device, f"neg.{kind}", [kind], lambda a: -a, kind)
    check_integer(device, f"abs.{kind}", [kind], abs, kind)


LOGIC = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(device, kind):
    for name, function in LOGIC.items():
        check_integer(device, f"{name}.{kind}", [kind] * 2, function, kind)
    check_integer(device, f"not.{kind}", [kind], lambda a: ~a, kind)
    if kind != "b16":
        check_integer(device, f"cnot.{kind}", [kind], lambda a: int(a == 0), kind)


def test_logic_of_predicates(device):
    a, b = (np.arange(32, dtype=np.uint32) >> k & 1 for k in (0, 1))
    for name, function in LOGIC.items():
        body = f"""{{ .reg .pred p, q, r; setp.ne.u32 p, %i0, 0; setp.ne.u32 q, %i1, 0; {name}.pred r, p, q;
                   not.pred q, r; selp.u32 %o0, 1, 0, r; @q add.u32 %o0, %o0, 2; }}"""
        check(device, body, [a, b], np.uint32, [1 if function(x, y) else 2 for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("table", [0x80, 0xFE, 0x96, 0xCA, 0xE8, 0x1B, 0x00])
def test_lop3(device, table):
    def lop3(a, b, c):
        bits = [(a >> k & 1) * 4 + (b >> k & 1) * 2 + (c >> k & 1) for k in range(32)]
        return sum((table >> bit & 1) << k for k, bit in enumerate(bits))

    inputs = [integers(32, seed=s) for s in range(3)]
    want = [lop3(*(int(x) for x in row)) for row in zip(*inputs, strict=True)]
    check(device, f"lop3.b32 %o0, %i0, %i1, %i2, {table};", inputs, np.uint32, want)


def shift_counts(seed=7):
    return np.random.default_rng(seed).choice([0, 1, 5, 15, 16, 31, 32, 33, 63, 64, 200], COUNT).astype(np.uint32)


@pytest.mark.parametrize("kind", [*NUMBERS, "b16", "b32", "b64"])
def test_shifts(device, kind):
    bits = int(kind[1:])
    a, by = integers(bits), shift_counts()
    if kind[0] == "b":
        want = [int(x) << int(n) & (2**bits - 1) for x, n in zip(a, by, strict=True)]
        check(device, f"shl.{kind} %o0, %i0, %i1;", [a, by], a.dtype, want)
    want = [(number(x, kind) >> int(n)) % 2**bits for x, n in zip(a, by, strict=True)]
    check(device, f"shr.{kind} %o0, %i0, %i1;", [a, by], a.dtype, want)


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts(device, mode):
    a, b, by = integers(32), integers(32, seed=1), shift_counts()
    count = [min(int(n), 32) if mode == "clamp" else int(n) % 32 for n in by]
    both = [int(y) << 32 | int(x) for x, y in zip(a, b, strict=True)]
    left = [(x << n) >> 32 & 0xFFFFFFFF for x, n in zip(both, count, strict=True)]
    right = [x >> n & 0xFFFFFFFF for x, n in zip(both, count, strict=True)]
    check(device, f"shf.l.{mode}.b32 %o0, %i0, %i1, %i2;", [a, b, by], np.uint32, left)
    check(device, f"shf.r.{mode}.b32 %o0, %i0, %i1, %i2;", [a, b, by], np.uint32, right)


def test_prmt(device):
    a, b, selectors = integers(32), integers(32, seed=1), integers(32, seed=2)

    def prmt(x, y, selector):
        source = (int(y) << 32 | int(x)).to_bytes(8, "little")
        picks = [int(selector) >> 4 * k & 15 for k in range(4)]
        return int.from_bytes([source[p & 7] if p < 8 else 255 * (source[p & 7] >> 7) for p in picks], "little")

    want = [prmt(*row) for row in zip(a, b, selectors, strict=True)]
    check(device, "prmt.b32 %o0, %i0, %i1, %i2;", [a, b, selectors], np.uint32, want)


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts(device, bits):
    a = integers(bits)
    count = lambda f: [f(int(x)) for x in a]  # noqa: E731
    check(device, f"popc.b{bits} %o0, %i0;", [a], np.uint32, count(lambda x: x.bit_count()))
    check(device, f"clz.b{bits} %o0, %i0;", [a], np.uint32, count(lambda x: bits - x.bit_length()))
    check(device, f"brev.b{bits} %o0, %i0;", [a], a.dtype, count(lambda x: int(f"{x:0{bits}b}"[::-1], 2)))
    for kind in (f"u{bits}", f"s{bits}"):

        def top(x, kind=kind):
            x = number(x, kind)
            return (~x if x < 0 else x).bit_length() - 1

        check(device, f"bfind.{kind} %o0, %i0;", [a], np.uint32, count(lambda x: top(x) % 2**32))
        shift = count(lambda x: (bits - 1 - top(x)) % 2**32 if top(x) >= 0 else 0xFFFFFFFF)
        check(device, f"bfind.shiftamt.{kind} %o0, %i0;", [a], np.uint32, shift)


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(device, kind):
    bits = int(kind[1:])
    a, b = integers(bits), integers(bits, seed=1)
    rng = np.random.default_rng(3)
    position = rng.integers(0, bits + 4, COUNT).astype(np.uint32)
    length = rng.choice([0, 1, 3, 8, bits - 1, bits, bits + 9], COUNT).astype(np.uint32)

    def extract(x, p, n):
        field = int(x) >> p & ((1 << n) - 1)
        kept = max(0, min(n, bits - p))
        if kind[0] == "u" or n == 0:
            return field
        sign = int(x) >> min(p + n - 1, bits - 1) & 1
        return (field & ((1 << kept) - 1)) - (sign << kept)

    rows = [(int(x), int(p), int(n)) for x, p, n in zip(a, position, length, strict=True)]
    want = [extract(*row) % 2**bits for row in rows]
    check(device, f"bfe.{kind} %o0, %i0, %i1, %i2;", [a, position, length], a.dtype, want)
    if kind[0] == "u":

        def insert(x, y, p, n):
            mask = ((1 << n) - 1) << p & (2**bits - 1)
            return (y & ~mask) | (x << p & mask)

        want = [insert(x, int(y), p, n) for (x, p, n), y in zip(rows, b, strict=True)]
        check(device, f"bfi.b{bits} %o0, %i0, %i1, %i2, %i3;", [a, b, position, length], a.dtype, want)


@pytest.mark.parametrize("a_kind", ["s32", "u32"])
@pytest.mark.parametrize("b_kind", ["s32", "u32"])
def test_dot_products_of_bytes(device, a_kind, b_kind):
    a, b, c = (integers(32, seed=s) for s in range(3))

    def parts(x, kind, size):
        return struct.unpack(
            ("<" + (4 // size) * "bBhH"[(kind[0] == "u") + 2 * (size == 2)]), int(x).to_bytes(4, "little")
        )

    dot = lambda x, y, z: (sum(p * q for p, q in zip(x, y, strict=False)) + int(z)) % 2**32  # noqa: E731
    rows = list(zip(a, b, c, strict=True))
    want = [dot(parts(x, a_kind, 1), parts(y, b_kind, 1), z) for x, y, z in rows]
    check(device, f"dp4a.{a_kind}.{b_kind} %o0, %i0, %i1, %i2;", [a, b, c], np.uint32, want)
    for half, first in (("lo", 0), ("hi", 2)):
        want = [dot(parts(x, a_kind, 2), parts(y, b_kind, 1)[first:], z) for x, y, z in rows]
        check(device, f"dp2a.{half}.{a_kind}.{b_kind} %o0, %i0, %i1, %i2;", [a, b, c], np.uint32, want)


def test_sums_of_128_bits_by_carries(device):
    words = [integers(32, seed=s) for s in range(8)]
    join = lambda w: sum(int(x) << 32 * k for k, x in enumerate(w))  # noqa: E731
    a, b = ([join(row) for row in zip(*words[k : k + 4], strict=True)] for k in (0, 4))
    for name, function in (("add", lambda x, y: x + y), ("sub", lambda x, y: x - y)):
        total = [function(x, y) % 2**128 for x, y in zip(a, b, strict=True)]
        for k in range(4):
            chain = [f"{name}{'c' if i else ''}{'.cc' if i < 3 else ''}.u32 %x{i}, %i{i}, %i{i + 4};" for i in range(4)]
            body = f"{{ .reg .b32 %x<4>; {' '.join(chain)} mov.b32 %o0, %x{k}; }}"
            check(device, body, words, np.uint32, [t >> 32 * k & 0xFFFFFFFF for t in total])


def test_product_of_64_bits_by_carries(device):
    """What compilers make of a 64-bit product and sum out of 32-bit halves."""
    a, b, c = (integers(64, seed=s) for s in range(3))
    body = """{ .reg .b32 al, ah, bl, bh, cl, ch, dl, dh;
        mov.b64 {al, ah}, %i0; mov.b64 {bl, bh}, %i1; mov.b64 {cl, ch}, %i2;
        mad.lo.cc.u32 dl, al, bl, cl; madc.hi.u32 dh, al, bl, ch;
        mad.lo.u32 dh, al, bh, dh; mad.lo.u32 dh, ah, bl, dh; mov.b64 %o0, {dl, dh}; }"""
    check(
        device,
        body,
        [a, b, c],
        np.uint64,
        [(int(x) * int(y) + int(z)) % 2**64 for x, y, z in zip(a, b, c, strict=True)],
    )


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("kind", NUMBERS)
def test_setp_of_integers(device, kind):
    bits = int(kind[1:])
    a, b = integers(bits), integers(bits, seed=1)
    b[::5] = a[::5]
    names = {**{n: n for n in COMPARISONS}, **(UNSIGNED_NAMES if kind[0] == "u" else {})}
    for name, meaning in names.items():
        want = [int(COMPARISONS[meaning](number(x, kind), number(y, kind))) for x, y in zip(a, b, strict=True)]
        body = f"{{ .reg .pred p; setp.{name}.{kind} p, %i0, %i1; selp.u32 %o0, 1, 0, p; }}"
        check(device, body, [a, b], np.uint32, want)


def test_setp_combined_and_its_complement(device):
    """p|q = (a < b) op c: the second predicate is op of the complement, not the complement of the first."""
    a, b = integers(32), integers(32, seed=1)
    c = np.random.default_rng(2).integers(0, 2, COUNT).astype(np.uint32)
    for name, function in LOGIC.items():
        for negated in ("", "!"):
            body = f"""{{ .reg .pred p, q, c; setp.ne.u32 c, %i2, 0; setp.lt.{name}.s32 p|q, %i0, %i1, {negated}c;
                       selp.u32 %o0, 1, 0, p; @q add.u32 %o0, %o0, 2; }}"""
            want = []
            for x, y, z in zip(a, b, c, strict=True):
                less, other = signed(x, 32) < signed(y, 32), bool(z) != (negated == "!")
                want.append(int(function(less, other)) + 2 * int(function(not less, other)))
            check(device, body, [a, b, c], np.uint32, want)


def test_set_and_selections(device):
    a, b = integers(32), integers(32, seed=1)
    less = [signed(x, 32) < signed(y, 32) for x, y in zip(a, b, strict=True)]
    check(device, "set.lt.u32.s32 %o0, %i0, %i1;", [a, b], np.uint32, [0xFFFFFFFF * x for x in less])
    check(device, "set.lt.f32.s32 %o0, %i0, %i1;", [a, b], np.uint32, [0x3F800000 * x for x in less])
    c = exact.samples(F32, COUNT, 5)
    want = [x if signed(z, 32) >= 0 else y for x, y, z in zip(a, b, c, strict=True)]
    check(device, "slct.u32.s32 %o0, %i0, %i1, %i2;", [a, b, c], np.uint32, want)
    for ftz in ("", ".ftz"):
        value = (lambda z: exact.flush(F32.value(z), F32)) if ftz else F32.value
        want = [x if value(z) >= 0 else y for x, y, z in zip(a, b, c, strict=True)]
        check(device, f"slct{ftz}.u32.f32 %o0, %i0, %i1, %i2;", [a, b, c], np.uint32, want)


def test_mov_takes_apart_and_joins(device):
    a = integers(64)
    swap = "{ .reg .b32 x, y; mov.b64 {x, y}, %i0; mov.b64 %o0, {y, x}; }"
    check(device, swap, [a], np.uint64, [(int(x) >> 32) | (int(x) & 0xFFFFFFFF) << 32 for x in a])
    swap = "{ .reg .b16 x, y; mov.b32 {x, y}, %i0; mov.b32 %o0, {y, x}; }"
    b = integers(32)
    check(device, swap, [b], np.uint32, [(int(x) >> 16) | (int(x) & 0xFFFF) << 16 for x in b])


# ---- Floating point
SUFFIX = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
SCALAR = ["f32", "f64", "f16", "bf16"]


def check_float(device, instruction, form, function, operands, ftz=False):
    """function(*values) gives the pattern that is wanted."""
    inputs = [exact.samples(form, COUNT, s) for s in range(operands)]
    for x in inputs[1:]:
        x[::7] = inputs[0][::7] ^ form.dtype.type(1 << (form.bits - 1) if x[0] & 1 else 0)  # cancellation, equality
    names = ", ".join(f"%i{i}" for i in range(operands))
    got = execute(device(), f"{instruction} %o0, {names};", inputs, [form.dtype])[0]
    if ftz:
        rounded = function
        function = lambda *v: form.encode(  # noqa: E731
            exact.flush(form.value(rounded(*(exact.flush(x, form) for x in v))), form)
        )
    want = exact.apply(function, form, *inputs)
    exact.assert_same(form, got, want, inputs, instruction)


ROUNDINGS = [("f32", m) for m in ("rn", "rz", "rm", "rp")] + [("f64", m) for m in ("rn", "rz", "rm", "rp")]


@pytest.mark.parametrize("kind, mode", [*ROUNDINGS, ("f16", "rn"), ("bf16", "rn")])
def test_sums_products_and_fused(device, kind, mode):
    form = SUFFIX[kind]
    check_float(device, f"add.{mode}.{kind}", form, lambda a, b: exact.add(a, b, form, mode), 2)
    check_float(device, f"sub.{mode}.{kind}", form, lambda a, b: exact.add(a, -b, form, mode), 2)
    check_float(device, f"mul.{mode}.{kind}", form, lambda a, b: exact.mul(a, b, form, mode), 2)
    check_float(device, f"fma.{mode}.{kind}", form, lambda a, b, c: exact.fma(a, b, c, form, mode), 3)


@pytest.mark.parametrize("kind, mode", [*ROUNDINGS[:4], ("f16", "rn")])
def test_flushed_subnormals(device, kind, mode):
    form = SUFFIX[kind]
    check_float(device, f"add.{mode}.ftz.{kind}", form, lambda a, b: exact.add(a, b, form, mode), 2, ftz=True)
    check_float(device, f"mul.{mode}.ftz.{kind}", form, lambda a, b: exact.mul(a, b, form, mode), 2, ftz=True)
    check_float(device, f"fma.{mode}.ftz.{kind}", form, lambda a, b, c: exact.fma(a, b, c, form, mode), 3, ftz=True)


def saturated(pattern, form):
    x = form.value(pattern)
    return form.encode(0.0 if math.isnan(x) or x <= 0 else min(x, 1.0))


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_saturation(device, kind):
    form = SUFFIX[kind]
    check_float(device, f"add.sat.{kind}", form, lambda a, b: saturated(exact.add(a, b, form), form), 2)
    check_float(device, f"mul.sat.{kind}", form, lambda a, b: saturated(exact.mul(a, b, form), form), 2)
    check_float(device, f"fma.rn.sat.{kind}", form, lambda a, b, c: saturated(exact.fma(a, b, c, form), form), 3)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_relu_of_fused(device, kind):
    form = SUFFIX[kind]
    relu = lambda p: 0 if form.value(p) < 0 else p  # noqa: E731
    check_float(device, f"fma.rn.relu.{kind}", form, lambda a, b, c: relu(exact.fma(a, b, c, form)), 3)


@pytest.mark.parametrize("kind, mode", ROUNDINGS)
def test_rounded_division_and_roots(device, kind, mode):
    form = SUFFIX[kind]
    check_float(device, f"div.{mode}.{kind}", form, lambda a, b: exact.div(a, b, form, mode), 2)
    check_float(device, f"rcp.{mode}.{kind}", form, lambda a: exact.div(1.0, a, form, mode), 1)
    check_float(device, f"sqrt.{mode}.{kind}", form, lambda a: exact.sqrt(a, form, mode), 1)
    if kind == "f32":
        check_float(device, f"div.{mode}.ftz.f32", form, lambda a, b: exact.div(a, b, form, mode), 2, ftz=True)
        check_float(device, f"rcp.{mode}.ftz.f32", form, lambda a: exact.div(1.0, a, form, mode), 1, ftz=True)
        check_float(device, f"sqrt.{mode}.ftz.f32", form, lambda a: exact.sqrt(a, form, mode), 1, ftz=True)


def extreme(values, form, larger, keep_nan):
    numbers = [v for v in values if not math.isnan(v)]
    if not numbers or (keep_nan and len(numbers) < len(values)):
        return form.nan
    key = lambda v: (v, math.copysign(1, v))  # noqa: E731  -0 < +0
    return form.encode((max if larger else min)(numbers, key=key))


@pytest.mark.parametrize("name, larger", [("min", False), ("max", True)])
@pytest.mark.parametrize("kind", SCALAR)
def test_minimum_and_maximum(device, kind, name, larger):
    form = SUFFIX[kind]
    check_float(device, f"{name}.{kind}", form, lambda *v: extreme(v, form, larger, False), 2)
    if kind != "f64":
        check_float(device, f"{name}.NaN.{kind}", form, lambda *v: extreme(v, form, larger, True), 2)
    if kind == "f32":
        check_float(device, f"{name}.{kind}", form, lambda *v: extreme(v, form, larger, False), 3)
        check_float(device, f"{name}.ftz.{kind}", form, lambda *v: extreme(v, form, larger, False), 2, ftz=True)


@pytest.mark.parametrize("kind", SCALAR)
def test_signs(device, kind):
    form = SUFFIX[kind]
    check_float(device, f"neg.{kind}", form, lambda a: form.encode(-a), 1)
    check_float(device, f"abs.{kind}", form, lambda a: form.encode(abs(a)), 1)
    if kind in ("f32", "f64"):
        a, b = exact.samples(form, COUNT, 0), exact.samples(form, COUNT, 1)
        top = 1 << (form.bits - 1)
        want = [(int(y) & (top - 1)) | (int(x) & top) for x, y in zip(a, b, strict=True)]
        check(device, f"copysign.{kind} %o0, %i0, %i1;", [a, b], form.dtype, want)


PACKED = {
    "add": (2, lambda form: lambda a, b: exact.add(a, b, form)),
    "sub": (2, lambda form: lambda a, b: exact.add(a, -b, form)),
    "mul": (2, lambda form: lambda a, b: exact.mul(a, b, form)),
    "fma.rn": (3, lambda form: lambda a, b, c: exact.fma(a, b, c, form)),
    "min": (2, lambda form: lambda a, b: extreme((a, b), form, False, False)),
    "max": (2, lambda form: lambda a, b: extreme((a, b), form, True, False)),
    "max.NaN": (2, lambda form: lambda a, b: extreme((a, b), form, True, True)),
    "neg": (1, lambda form: lambda a: form.encode(-a)),
    "abs": (1, lambda form: lambda a: form.encode(abs(a))),
}


def pairs(form, seed):
    return exact.samples(form, 2 * COUNT, seed).view(np.uint32)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", PACKED)
def test_packed_arithmetic(device, name, kind):
    operands, make = PACKED[name]
    form = SUFFIX[kind]
    inputs = [pairs(form, seed) for seed in range(operands)]
    names = ", ".join(f"%i{i}" for i in range(operands))
    got = execute(device(), f"{name}.{kind}x2 %o0, {names};", inputs, [np.uint32])[0].view(np.uint16)
    halves = [x.view(np.uint16) for x in inputs]
    exact.assert_same(form, got, exact.apply(make(form), form, *halves), halves, name)


FLOAT_COMPARISONS = {
    **{n: (f, False) for n, f in COMPARISONS.items()},
    **{n + "u": (COMPARISONS[n], True) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "num": (lambda a, b: True, False),
    "nan": (lambda a, b: False, True),
}


def compare(name, a, b):
    function, of_nan = FLOAT_COMPARISONS[name]
    return of_nan if math.isnan(a) or math.isnan(b) else function(a, b)


@pytest.mark.parametrize("kind", SCALAR)
def test_setp_of_floats(device, kind):
    form = SUFFIX[kind]
    a, b = exact.samples(form, COUNT, 0), exact.samples(form, COUNT, 1)
    b[::5] = a[::5]
    for name in FLOAT_COMPARISONS:
        body = f"{{ .reg .pred p; setp.{name}.{kind} p, %i0, %i1; selp.u32 %o0, 1, 0, p; }}"
        want = [int(compare(name, form.value(x), form.value(y))) for x, y in zip(a, b, strict=True)]
        check(device, body, [a, b], np.uint32, want)
    flushed = [
        int(exact.flush(form.value(x), form) == exact.flush(form.value(y), form)) for x, y in zip(a, b, strict=True)
    ]
    if kind in ("f32", "f16"):
        body = f"{{ .reg .pred p; setp.eq.ftz.{kind} p, %i0, %i1; selp.u32 %o0, 1, 0, p; }}"
        check(device, body, [a, b], np.uint32, flushed)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_comparison_of_pairs(device, kind):
    form = SUFFIX[kind]
    a, b = pairs(form, 0), pairs(form, 1)
    b[::5] = a[::5]
    low, high = (
        [
            compare("gt", form.value(x), form.value(y))
            for x, y in zip(a.view(np.uint16)[h::2], b.view(np.uint16)[h::2], strict=True)
        ]
        for h in (0, 1)
    )
    body = f"{{ .reg .pred p, q; setp.gt.{kind}x2 p|q, %i0, %i1; selp.u32 %o0, 1, 0, p; @q add.u32 %o0, %o0, 2; }}"
    check(device, body, [a, b], np.uint32, [int(x) + 2 * int(y) for x, y in zip(low, high, strict=True)])
    one = form.encode(1.0)
    want = [one * int(x) | one * int(y) << 16 for x, y in zip(low, high, strict=True)]
    check(device, f"set.gt.{kind}x2.{kind}x2 %o0, %i0, %i1;", [a, b], np.uint32, want)


# ---- Approximations: within the documented bound whatever the seed, and not the same for all seeds
APPROXIMATIONS = {
    "ex2.approx.ftz.f32": (np.exp2, 2**-22, None, (-120, 120)),
    "ex2.approx.f32": (np.exp2, 2**-22, None, (-120, 120)),
    "lg2.approx.f32": (np.log2, 2**-22, 2**-22, (1e-30, 1e30)),
    "rcp.approx.f32": (lambda x: 1 / x, 2**-23, None, (-1e30, 1e30)),
    "rcp.approx.ftz.f32": (lambda x: 1 / x, 2**-23, None, (-1e30, 1e30)),
    "rsqrt.approx.f32": (lambda x: 1 / np.sqrt(x), 2**-22.9, None, (1e-30, 1e30)),
    "sqrt.approx.f32": (np.sqrt, 2**-23, None, (1e-30, 1e30)),
    "sin.approx.f32": (np.sin, None, 2**-20.5, (-3.14, 3.14)),
    "cos.approx.f32": (np.cos, None, 2**-20.5, (-3.14, 3.14)),
    "tanh.approx.f32": (np.tanh, 2**-11, None, (-9, 9)),
}


@pytest.mark.parametrize("instruction", APPROXIMATIONS)
def test_approximations_stay_within_their_bound(device, instruction):
    function, relative, absolute, (low, high) = APPROXIMATIONS[instruction]
    rng = np.random.default_rng(4)
    if low > 0:
        x = np.exp(rng.uniform(np.log(low), np.log(high), 512)).astype(np.float32)
    else:
        x = rng.uniform(low, high, 512).astype(np.float32)
    want = function(x.astype(np.float64))
    results = []
    for seed in (0, 1, 2):
        got = execute(device(arith_seed=seed), f"{instruction} %o0, %i0;", [x], [np.float32])[0].astype(np.float64)
        allowed = np.maximum(np.abs(want) * (relative or 0), absolute or 0) + np.spacing(
            np.abs(want).astype(np.float32)
        )
        assert (np.abs(got - want) <= allowed).all()
        results.append(got)
    assert (results[0] != results[1]).any() and (results[1] != results[2]).any()


INFINITY = math.inf
SPECIAL_VALUES = {
    "ex2.approx.f32": [(-INFINITY, 0.0), (INFINITY, INFINITY), (0.0, 1.0), (-0.0, 1.0)],
    "lg2.approx.f32": [(0.0, -INFINITY), (INFINITY, INFINITY), (-1.0, math.nan), (1.0, 0.0)],
    "rcp.approx.f32": [(0.0, INFINITY), (-0.0, -INFINITY), (INFINITY, 0.0), (-INFINITY, -0.0)],
    "rsqrt.approx.f32": [(0.0, INFINITY), (-0.0, -INFINITY), (INFINITY, 0.0), (-1.0, math.nan)],
    "sqrt.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INFINITY, INFINITY), (-1.0, math.nan)],
    "tanh.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INFINITY, 1.0), (-INFINITY, -1.0)],
    "sin.approx.f32": [(0.0, 0.0), (-0.0, -0.0), (INFINITY, math.nan)],
    "cos.approx.f32": [(0.0, 1.0), (-INFINITY, math.nan)],
}


@pytest.mark.parametrize("instruction", SPECIAL_VALUES)
@pytest.mark.parametrize("seed", [0, 1])
def test_approximations_of_special_values(device, instruction, seed):
    table = np.array([*SPECIAL_VALUES[instruction], (math.nan, math.nan)], np.float32)
    x, want = (np.resize(table[:, column], 32).view(np.uint32) for column in (0, 1))
    got = execute(device(arith_seed=seed), f"{instruction} %o0, %i0;", [x], [np.uint32])[0]
    exact.assert_same(F32, got, want, (x,), instruction)


def test_approximate_division(device):
    a, b = (np.random.default_rng(s).uniform(-100, 100, 512).astype(np.float32) for s in (0, 1))
    want = a.astype(np.float64) / b
    for name in ("div.approx.f32", "div.full.f32"):
        for seed in (0, 1):
            got = execute(device(arith_seed=seed), f"{name} %o0, %i0, %i1;", [a, b], [np.float32])[0]
            assert (np.abs(got - want) <= 2 * np.spacing(np.abs(want).astype(np.float32))).all()


def test_half_approximations(device):
    for kind, form in (("f16", F16), ("bf16", BF16)):
        x = np.array([form.encode(v) for v in np.linspace(-8, 8, 64)], np.uint16)
        values = np.array([form.value(v) for v in x])
        for name, function in ((f"ex2.approx{'.ftz' if kind == 'bf16' else ''}", np.exp2), ("tanh.approx", np.tanh)):
            got = execute(device(), f"{name}.{kind} %o0, %i0;", [x], [np.uint16])[0]
            want = np.array([form.encode(v) for v in function(values)])
            assert (np.abs(got.astype(int) - want) <= 1).all()
        got = execute(device(), f"tanh.approx.{kind}x2 %o0, %i0;", [x.view(np.uint32)], [np.uint32])[0].view(np.uint16)
        want = np.array([form.encode(v) for v in np.tanh(values)])
        assert (np.abs(got.astype(int) - want) <= 1).all()


def test_what_is_not_emulated_is_named(device):
    x = np.zeros(32, np.uint32)
    for body, words in (
        ("mul24.lo.u32 %o0, %i0, %i0;", "mul24.lo.u32 is not emulated"),
        ("add.rn.f32x2 %o0, %i0, %i0;", "add.rn.f32x2 is not emulated"),
        ("min.xorsign.abs.f32 %o0, %i0, %i0;", "min.xorsign.abs.f32 is not emulated: .xorsign"),
    ):
        with pytest.raises(DeviceFault, match=words):
            execute(device(), body, [x], [np.uint32])
