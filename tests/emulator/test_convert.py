"""cvt, between all types and roundings, beside exact.py's one rounding."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.emulator import exact
from tests.emulator.exact import BF16, E4M3, E5M2, F16, F32, F64, TF32
from tests.emulator.ptx import execute
from tests.emulator.test_alu import SUFFIX, integers, number, saturated

COUNT = 128
FLOATS = ["f16", "bf16", "f32", "f64"]
INTEGERS = ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"]
WHOLE = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def convert(device, instruction, source, dtype, **how):
    return execute(device(), f"{instruction} %o0, %i0;", [source], [dtype], **how)[0]


def check(device, instruction, source, form, function):
    """function(pattern) gives the pattern of `form` that is wanted."""
    got = convert(device, instruction, source, form.dtype)
    exact.assert_same(form, got, [function(int(x)) for x in source], (source,), instruction)


def whole(x, mode):
    if math.isnan(x) or math.isinf(x):
        return x
    if mode == "rn":
        return math.copysign(round(x), x)  # Python rounds ties to even
    return math.copysign({"rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode](x), x)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
def test_between_floats(device, to, source):
    a, b = SUFFIX[source], SUFFIX[to]
    x = exact.samples(a, COUNT, 1)
    if a.fraction < b.fraction and a.exponent <= b.exponent:  # exact
        check(device, f"cvt.{to}.{source}", x, b, lambda p: b.encode(a.value(p)))
    elif to != source and (a.bits > b.bits or {to, source} == {"f16", "bf16"}):
        check(device, f"cvt.rn.{to}.{source}", x, b, lambda p: b.encode(a.value(p)))
        if a.bits > b.bits and source != "f64":
            check(device, f"cvt.rz.{to}.{source}", x, b, lambda p: b.encode(a.value(p), "rz"))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_double_to_float(device, mode):
    x = exact.samples(F64, COUNT, 1)
    near = exact.samples(F32, COUNT, 2).view(np.float32).astype(np.float64).view(np.uint64)
    x[::2] = near[::2] + np.random.default_rng(3).integers(-3, 4, COUNT // 2).astype(np.uint64)  # beside floats
    check(device, f"cvt.{mode}.f32.f64", x, F32, lambda p: F32.encode(F64.value(p), mode))


def test_halfway_doubles_round_once(device):
    """A double beside the middle of two halves: rounding to float first would end on the wrong side."""
    middle = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, -(1 + 2.0**-11), 2.0**-25], np.float64).view(np.uint64)
    x = np.resize(np.concatenate([middle + d for d in (0, 1, np.uint64(2**64 - 1))]), 96).astype(np.uint64)
    check(device, "cvt.rn.f16.f64", x, F16, lambda p: F16.encode(F64.value(p)))


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
@pytest.mark.parametrize("mode", WHOLE)
def test_to_whole_numbers(device, mode, kind):
    form = SUFFIX[kind]
    check(
        device,
        f"cvt.{mode}.{kind}.{kind}",
        exact.samples(form, COUNT, 2),
        form,
        lambda p: form.encode(whole(form.value(p), WHOLE[mode])),
    )


def test_float_forms(device):
    x = exact.samples(F32, COUNT, 3)
    flush = lambda p: exact.flush(F32.value(p), F32)  # noqa: E731
    check(device, "cvt.sat.f32.f32", x, F32, lambda p: saturated(p, F32))
    check(device, "cvt.ftz.f32.f32", x, F32, lambda p: F32.encode(flush(p)))
    check(device, "cvt.rn.ftz.f16.f32", x, F16, lambda p: F16.encode(flush(p)))
    check(device, "cvt.ftz.f64.f32", x, F64, lambda p: F64.encode(flush(p)))
    y = exact.samples(F64, COUNT, 4)
    check(
        device,
        "cvt.rn.ftz.f32.f64",
        y,
        F32,
        lambda p: F32.encode(exact.flush(F32.value(F32.encode(F64.value(p))), F32)),
    )
    relu = lambda v: 0.0 if v < 0 else v  # noqa: E731
    check(device, "cvt.rn.relu.f16.f32", x, F16, lambda p: F16.encode(relu(F32.value(p))))
    check(device, "cvt.rn.relu.bf16.f32", x, BF16, lambda p: BF16.encode(relu(F32.value(p))))
    check(device, "cvt.rz.relu.bf16.f32", x, BF16, lambda p: BF16.encode(relu(F32.value(p)), "rz"))


def clamped(x, kind, source):
    bits = int(kind[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    if math.isnan(x):  # "cvt": zero, but for 64-bit floats and integers the top bit alone
        return 2 ** (bits - 1) if source == "f64" or bits == 64 else 0
    if math.isinf(x):
        return high if x > 0 else low
    return min(max(int(x), low), high)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("to", INTEGERS)
def test_float_to_integer(device, to, source):
    form, bits = SUFFIX[source], int(to[1:])
    x = exact.samples(form, COUNT, 5)
    edges = [
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        127.5,
        128.5,
        255.5,
        32767.5,
        -32768.5,
        2.0**31,
        2.0**32,
        2.0**63,
        2.0**64,
        -(2.0**63),
    ]
    x[: len(edges)] = [form.encode(e) for e in edges]
    register = np.dtype(f"u{max(bits // 8, 2)}")
    for mode, rounding in WHOLE.items():
        got = convert(device, f"cvt.{mode}.{to}.{source}", x, register)
        for p, g in zip(x, got, strict=True):
            value = form.value(p)
            want = clamped(whole(value, rounding), to, source) % 2**bits
            assert int(g) % 2**bits == want, f"cvt.{mode}.{to}.{source} of {value!r}: {int(g):#x}, expected {want:#x}"


@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_float(device, source, to):
    form, bits = SUFFIX[to], int(source[1:])
    x = integers(max(bits, 16), COUNT, 6)
    if bits == 64:
        x[:4] = [2**53 + 1, 2**62 + 2**38, 2**62 + 2**54 + 1, 2**63 - 1]
    value = lambda p: number(p % 2**bits, source)  # noqa: E731
    for mode in ("rn", "rz", "rm", "rp"):
        check(device, f"cvt.{mode}.{to}.{source}", x, form, lambda p, mode=mode: form.encode(Fraction(value(p)), mode))


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", INTEGERS)
def test_between_integers(device, to, source):
    """Without .sat the low bits, extended by the destination's sign to the register; with it the nearest number."""
    bits, source_bits = int(to[1:]), int(source[1:])
    x = integers(max(source_bits, 16), COUNT, 7)
    register = max(bits, 16)
    for sat in ("", ".sat"):
        got = convert(device, f"cvt{sat}.{to}.{source}", x, np.dtype(f"u{register // 8}"))
        for p, g in zip(x, got, strict=True):
            value = number(int(p) % 2**source_bits, source)
            if sat:
                value = clamped(value, to, source)
            want = number(value % 2**bits, to) % 2**register
            assert int(g) == want, f"cvt{sat}.{to}.{source} of {value}: {int(g):#x}, expected {want:#x}"


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_to_tf32(device, mode):
    x = exact.samples(F32, COUNT, 8)
    got = convert(device, f"cvt.{mode}.tf32.f32", x, np.uint32)
    want = [TF32.encode(F32.value(p), mode) for p in x]
    exact.assert_same(TF32, got, want, (x,), mode)


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("relu", ["", ".relu"])
def test_two_floats_into_a_pair(device, kind, mode, relu):
    form = SUFFIX[kind]
    high, low = exact.samples(F32, COUNT, 9), exact.samples(F32, COUNT, 10)
    body = f"cvt.{mode}{relu}.{kind}x2.f32 %o0, %i0, %i1;"
    got = execute(device(), body, [high, low], [np.uint32])[0].view(np.uint16)
    value = lambda p: max(F32.value(p), 0.0) if relu and F32.value(p) < 0 else F32.value(p)  # noqa: E731
    for half, source in ((1, high), (0, low)):
        exact.assert_same(form, got[half::2], [form.encode(value(p), mode) for p in source], (source,), body)


FP8 = {"e4m3": E4M3, "e5m2": E5M2}


@pytest.mark.parametrize("name", FP8)
def test_to_fp8(device, name):
    """Two floats, or a pair of halves, into two bytes; beyond the largest number, infinities too, to that number."""
    form = FP8[name]
    rng = np.random.default_rng(11)
    values = np.concatenate([rng.normal(0, 2.0**k, 16) for k in range(-18, 18)]).astype(np.float32)
    values = np.concatenate(
        [values, [448, 464, 480, 57344, 61440, 1e9, np.inf, -np.inf, np.nan, 0, -0.0, 2**-10, 3 * 2**-10]]
    )
    values = np.resize(values, 640).astype(np.float32)
    encode = lambda v: form.nan & 0x7F if math.isnan(v) else form.encode(float(v), saturate=True)  # noqa: E731
    high, low = values[:320].view(np.uint32), values[320:].view(np.uint32)
    for relu in ("", ".relu"):
        body = f"cvt.rn.satfinite{relu}.{name}x2.f32 %o0, %i0, %i1;"
        got = execute(device(), body, [high, low], [np.uint16])[0].view(np.uint8)
        for half, source in ((1, high), (0, low)):
            cut = [0.0 if relu and v < 0 else v for v in source.view(np.float32)]
            exact.assert_same(form, got[half::2], [encode(v) for v in cut], (source,), body)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    got = convert(device, f"cvt.rn.satfinite.{name}x2.f16x2", halves.view(np.uint32), np.uint16).view(np.uint8)
    exact.assert_same(form, got, [encode(v) for v in halves], (halves.view(np.uint16),), name)


@pytest.mark.parametrize("name", FP8)
def test_from_fp8(device, name):
    x = np.arange(256, dtype=np.uint8)
    got = convert(device, f"cvt.rn.f16x2.{name}x2", x.view(np.uint16), np.uint32).view(np.uint16)
    exact.assert_same(F16, got, [F16.encode(FP8[name].value(p)) for p in x], (x,), name)
    relu = convert(device, f"cvt.rn.relu.f16x2.{name}x2", x.view(np.uint16), np.uint32).view(np.uint16)
    value = lambda p: 0.0 if FP8[name].value(p) < 0 else FP8[name].value(p)  # noqa: E731
    exact.assert_same(F16, relu, [F16.encode(value(p)) for p in x], (x,), name)
