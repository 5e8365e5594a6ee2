"""Float formats and their arithmetic, exactly: bit patterns to fractions, one operation, and one rounding back.

What the tests compare the emulator with. Nothing here is shared with it, and nothing here is fast.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Format:
    """A sign, exponent bits, fraction bits, and ``spare`` unused ones, from the top of ``bits`` bits down.

    ``infinities``: the largest exponent is that of infinities and NaN; else (e4m3) of numbers, and one NaN of all ones.
    """

    exponent: int
    fraction: int
    infinities: bool = True
    spare: int = 0

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.fraction + self.spare

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent - 1) - 1

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(f"u{max(self.bits // 8, 1)}")

    @property
    def nan(self) -> int:
        return (1 << (self.bits - 1)) - (1 << self.spare)

    def value(self, pattern: int) -> float:
        """The number a bit pattern stands for; every format here fits a Python float."""
        pattern = int(pattern) >> self.spare
        sign = -1.0 if pattern >> (self.exponent + self.fraction) & 1 else 1.0
        exponent = pattern >> self.fraction & (2**self.exponent - 1)
        fraction = pattern & (2**self.fraction - 1)
        if exponent == 2**self.exponent - 1:
            if self.infinities:
                return math.nan if fraction else sign * math.inf
            if fraction == 2**self.fraction - 1:
                return math.nan
        if exponent == 0:
            return sign * math.ldexp(fraction, 1 - self.bias - self.fraction)
        return sign * math.ldexp(2**self.fraction + fraction, exponent - self.bias - self.fraction)

    def largest(self) -> int:
        """The pattern of the largest number, without the spare bits."""
        top = 2 ** (self.exponent + self.fraction) - 1
        return top - 2**self.fraction if self.infinities else top - 1

    def encode(self, x: Fraction | float, mode: str = "rn", zero_sign: bool = False, saturate: bool = False) -> int:
        """Rounds to nearest even, zero, down, up (rn, rz, rm, rp), or nearest with ties away from zero (rna)."""
        sign = x < 0 or (x == 0 and (zero_sign or (isinstance(x, float) and math.copysign(1, x) < 0)))
        place = (1 << (self.exponent + self.fraction)) if sign else 0
        if isinstance(x, float) and math.isnan(x):
            return self.nan
        if isinstance(x, float) and math.isinf(x):
            pattern = self.largest() + (not saturate)
            return (place | pattern) << self.spare
        magnitude = abs(Fraction(x))
        if magnitude == 0:
            return place << self.spare
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if magnitude < Fraction(2) ** exponent:
            exponent -= 1
        exponent = max(exponent, 1 - self.bias)
        scaled = magnitude / Fraction(2) ** (exponent - self.fraction)
        whole, rest = int(scaled), scaled - int(scaled)
        up = {
            "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
            "rna": rest >= Fraction(1, 2),
            "rz": False,
            "rm": sign and rest > 0,
            "rp": not sign and rest > 0,
        }[mode]
        pattern = ((exponent + self.bias - 1) << self.fraction) + whole + up  # a carry moves the exponent up
        if pattern > self.largest():
            stays = saturate or mode == "rz" or (mode == "rm" and not sign) or (mode == "rp" and sign)
            pattern = self.largest() if stays else self.largest() + 1
        return (place | pattern) << self.spare


F64, F32, F16, BF16 = Format(11, 52), Format(8, 23), Format(5, 10), Format(8, 7)
TF32 = Format(8, 10, spare=13)
E4M3, E5M2 = Format(4, 3, infinities=False), Format(5, 2)


def flush(x: float, form: Format) -> float:
    """`.ftz`: a subnormal becomes the zero of its sign."""
    return math.copysign(0.0, x) if abs(x) < 2.0 ** (1 - form.bias) else x


def fma(a: float, b: float, c: float, form: Format, mode: str = "rn") -> int:
    """The pattern of a b + c, rounded once."""
    if any(math.isnan(v) or math.isinf(v) for v in (a, b)):
        return form.encode(a * b + c, mode)
    if math.isnan(c) or math.isinf(c):
        return form.encode(c, mode)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    product_sign = math.copysign(1, a) * math.copysign(1, b) < 0
    same = product_sign == (math.copysign(1, c) < 0)
    return form.encode(exact, mode, zero_sign=product_sign if same else mode == "rm")


def add(a: float, b: float, form: Format, mode: str = "rn") -> int:
    return fma(a, 1.0, b, form, mode)


def mul(a: float, b: float, form: Format, mode: str = "rn") -> int:
    return fma(a, b, math.copysign(0.0, math.copysign(1, a) * math.copysign(1, b)), form, mode)


def div(a: float, b: float, form: Format, mode: str = "rn") -> int:
    sign = math.copysign(1, a) * math.copysign(1, b)
    if math.isnan(a) or math.isnan(b) or (math.isinf(a) and math.isinf(b)) or (a == 0 and b == 0):
        return form.nan
    if math.isinf(a) or b == 0:
        return form.encode(math.copysign(math.inf, sign), mode)
    if math.isinf(b) or a == 0:
        return form.encode(math.copysign(0.0, sign), mode)
    return form.encode(Fraction(a) / Fraction(b), mode)


def sqrt(a: float, form: Format, mode: str = "rn") -> int:
    if math.isnan(a) or a < 0:
        return form.nan
    if math.isinf(a) or a == 0:
        return form.encode(a, mode)
    x = Fraction(a)
    scale = 2**1200  # many more bits than any format has; what is cut off is marked by one bit below
    root = math.isqrt(x.numerator * scale // x.denominator)
    exact = root * root * x.denominator == x.numerator * scale
    return form.encode(Fraction(2 * root + (not exact), 2 * 2**600), mode)


def samples(form: Format, count: int, seed: int) -> np.ndarray:
    """Bit patterns: everything special, numbers near one another, numbers anywhere."""
    rng = random.Random(seed)
    top, one = 1 << (form.exponent + form.fraction), form.bias << form.fraction
    special = [
        0,
        1,
        2**form.fraction - 1,
        2**form.fraction,
        one,
        one + 1,
        one - 1,
        form.largest(),
        form.nan >> form.spare,
    ]
    special += [one + 2 ** (form.fraction - 1), form.largest() + 1]
    special += [s | top for s in special]
    near = [one + rng.randrange(-(3 << form.fraction), 3 << form.fraction) | rng.choice((0, top)) for _ in range(count)]
    anywhere = [rng.randrange(2 * top) for _ in range(count)]
    patterns = (special + [p for pair in zip(near, anywhere, strict=True) for p in pair])[:count]
    rng.shuffle(patterns)
    return np.array([p << form.spare for p in patterns], form.dtype)


def apply(function: Callable[..., int], form: Format, *arrays: np.ndarray) -> np.ndarray:
    """function(*values) elementwise, arrays being patterns of ``form``."""
    return np.array([function(*(form.value(x) for x in row)) for row in zip(*arrays, strict=True)], object)


def assert_same(
    form: Format, got: np.ndarray, want: np.ndarray, inputs: tuple[np.ndarray, ...] = (), what: str = ""
) -> None:
    """Equal bits; any NaN equals any other."""
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        g, w = int(g), int(w)
        if g == w or (math.isnan(form.value(g)) and math.isnan(form.value(w))):
            continue
        operands = ", ".join(f"{int(x[i]):#x}" for x in inputs)
        raise AssertionError(
            f"{what}: element {i} of ({operands}): {g:#x} ({form.value(g)!r}), expected {w:#x} ({form.value(w)!r})"
        )
