// Number formats of the device, and conversions between their bits and float.
#pragma once
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace emulator {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

// The float nearest to x among those with an odd last bit, unless x is itself a float. Rounding it further, to a format
// with at least two bits less, gives what one rounding of x would have given (Boldo and Melquiond, 2008).
template <class Wide>
inline float round_to_odd(Wide x) {
    const float nearest = static_cast<float>(x);
    if (static_cast<Wide>(nearest) == x || !std::isfinite(nearest) || std::isnan(x)) return nearest;
    const u32 bits = std::bit_cast<u32>(nearest);
    const bool too_large = std::fabs(static_cast<Wide>(nearest)) > std::fabs(x);
    return std::bit_cast<float>((too_large ? bits - 1 : bits) | 1u);
}

inline float half_to_float(u16 bits) {
    return static_cast<float>(std::bit_cast<_Float16>(bits));
}
inline u16 float_to_half(float x) {
    if (std::isnan(x)) return 0x7fff;
    return std::bit_cast<u16>(static_cast<_Float16>(x));
}
inline float bfloat16_to_float(u16 bits) {
    return std::bit_cast<float>(static_cast<u32>(bits) << 16);
}
inline u16 float_to_bfloat16(float x) {
    const u32 bits = std::bit_cast<u32>(x);
    if (std::isnan(x)) return 0x7fff;
    return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// 16-bit numbers that convert to and from float implicitly, so that one template serves every float type.
struct Half {
    u16 bits;
    Half() = default;
    Half(float x) : bits(float_to_half(x)) {}
    operator float() const { return half_to_float(bits); }
};
struct BFloat16 {
    u16 bits;
    BFloat16() = default;
    BFloat16(float x) : bits(float_to_bfloat16(x)) {}
    operator float() const { return bfloat16_to_float(bits); }
};

// `.ftz`: subnormal inputs and results are zeros of the same sign (PTX ISA, 9.7.3).
// A number that flushes itself whenever it is read from a register or made from a result.
struct FlushedFloat {
    float value;
    FlushedFloat() = default;
    FlushedFloat(float x) : value(flush(x)) {}
    operator float() const { return flush(value); }
    static float flush(float x) {
        return (std::bit_cast<u32>(x) & 0x7f800000u) == 0 ? std::bit_cast<float>(std::bit_cast<u32>(x) & 0x80000000u)
                                                          : x;
    }
};
struct FlushedHalf {
    u16 bits;
    FlushedHalf() = default;
    FlushedHalf(float x) : bits(flush(float_to_half(x))) {}
    operator float() const { return half_to_float(flush(bits)); }
    static u16 flush(u16 x) { return (x & 0x7c00) == 0 ? static_cast<u16>(x & 0x8000) : x; }
};
struct FlushedBFloat16 {
    u16 bits;
    FlushedBFloat16() = default;
    FlushedBFloat16(float x) : bits(flush(float_to_bfloat16(x))) {}
    operator float() const { return bfloat16_to_float(flush(bits)); }
    static u16 flush(u16 x) { return (x & 0x7f80) == 0 ? static_cast<u16>(x & 0x8000) : x; }
};

template <class T>
inline constexpr bool is_half_sized = std::is_same_v<T, Half> || std::is_same_v<T, BFloat16> ||
                                      std::is_same_v<T, FlushedHalf> || std::is_same_v<T, FlushedBFloat16>;
template <class T>
inline constexpr bool is_float = std::is_floating_point_v<T> || std::is_same_v<T, FlushedFloat> || is_half_sized<T>;

// The 8-bit formats. e4m3 has no infinity: 0x7f is its NaN, 448 its largest number. e5m2 is the upper half of fp16.
enum class Float8 { e4m3, e5m2 };

inline float float8_to_float(u8 bits, Float8 format) {
    if (format == Float8::e5m2) return half_to_float(static_cast<u16>(bits << 8));
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    if ((bits & 0x7f) == 0x7f) return std::nanf("");
    const float magnitude = exponent ? std::ldexp(static_cast<float>(8 + fraction), exponent - 10)
                                     : std::ldexp(static_cast<float>(fraction), -9);
    return bits & 0x80 ? -magnitude : magnitude;
}

// cvt.rn.satfinite: to the nearest, ties to even; beyond the largest number, infinities included, to that number.
inline u8 float_to_float8(float x, Float8 format) {
    const int fraction_bits = format == Float8::e4m3 ? 3 : 2, smallest_exponent = format == Float8::e4m3 ? -6 : -14;
    const u8 largest = format == Float8::e4m3 ? 0x7e : 0x7b;
    if (std::isnan(x)) return 0x7f;
    const u8 sign = std::signbit(x) ? 0x80 : 0;
    const float magnitude = std::fabs(x);
    if (magnitude == 0) return sign;
    if (std::isinf(magnitude)) return sign | largest;
    const int exponent = std::max(std::ilogb(magnitude), smallest_exponent);
    const int significand = static_cast<int>(std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent)));
    const int code = ((exponent - smallest_exponent) << fraction_bits) + significand;  // a carry moves the exponent up
    return sign | static_cast<u8>(std::min<int>(code, largest));
}

}  // namespace emulator
