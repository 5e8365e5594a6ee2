// cvt: conversions between number types. PTX ISA: 9.7.9.21 "cvt".
#include <cmath>
#include <limits>

#include "instructions.h"
#include "lanes.h"

namespace emulator {
namespace {

enum class Rounding : u32 { nearest, zero, down, up, nearest_away };

// What a conversion does besides changing the type; packed into Instruction::flags.
struct Mode {
    Rounding rounding;
    bool to_integral;  // .rni and its like: the result is a whole number
    bool saturate;     // floats into [0, 1], integers into the range of the destination
    bool relu, ftz;
};
u32 pack(const Mode& m) {
    return static_cast<u32>(m.rounding) | m.to_integral << 4 | m.saturate << 5 | m.relu << 6 | m.ftz << 7;
}
Mode unpack(u32 flags) {
    return {static_cast<Rounding>(flags & 15), (flags >> 4 & 1) != 0, (flags >> 5 & 1) != 0, (flags >> 6 & 1) != 0,
            (flags >> 7 & 1) != 0};
}

template <class F>
F to_whole(F x, Rounding r) {
    switch (r) {
        case Rounding::zero:
            return std::trunc(x);
        case Rounding::down:
            return std::floor(x);
        case Rounding::up:
            return std::ceil(x);
        default:
            return std::nearbyint(x);
    }
}

// The next number of the format above or below.
template <class Dst>
Dst neighbour(Dst x, bool above) {
    if constexpr (std::is_floating_point_v<Dst>) {
        constexpr Dst infinity = std::numeric_limits<Dst>::infinity();
        return std::nextafter(x, above ? infinity : -infinity);
    } else {
        const bool negative = x.bits >> 15;
        if ((x.bits & 0x7fff) == 0)
            x.bits = above ? 1 : 0x8001;
        else
            x.bits = static_cast<u16>(negative == above ? x.bits - 1 : x.bits + 1);
        return x;
    }
}

// The number of the format that x becomes: the nearest, or its neighbour on the other side of x. Wide holds x exactly:
// double for floats, long double for 64-bit integers.
template <class Dst, class Wide>
Dst rounded(Wide x, Rounding rounding) {
    Dst d;
    if constexpr (std::is_floating_point_v<Dst>)
        d = static_cast<Dst>(x);
    else
        d = Dst(round_to_odd(x));
    if (rounding == Rounding::nearest || !std::isfinite(x)) return d;
    Wide back;
    if constexpr (std::is_floating_point_v<Dst>)
        back = d;
    else
        back = static_cast<Wide>(static_cast<float>(d));
    const bool down = rounding == Rounding::down || (rounding == Rounding::zero && x > 0);
    if (down && back > x) return neighbour(d, false);
    if (!down && back < x) return neighbour(d, true);
    return d;
}

template <class Dst>
Dst to_float(double x, const Mode& m) {
    if (m.to_integral) x = to_whole(x, m.rounding);
    if (m.saturate) x = x > 0 ? (x < 1 ? x : 1) : 0;
    if (m.relu && x < 0) x = 0;
    const Dst d = rounded<Dst>(x, m.to_integral ? Rounding::nearest : m.rounding);
    if constexpr (std::is_same_v<Dst, float>) return m.ftz ? FlushedFloat::flush(d) : d;
    return d;
}

// NaN gives zero, but the top bit alone where 64-bit floats or integers take part.
template <class Dst, class Src>
Dst to_integer(double x, const Mode& m) {
    if (std::isnan(x)) {
        const bool wide = std::is_same_v<Src, double> || sizeof(Dst) == 8;
        return wide ? static_cast<Dst>(1ull << (8 * sizeof(Dst) - 1)) : 0;
    }
    x = to_whole(x, m.rounding);
    constexpr double lowest = static_cast<double>(std::numeric_limits<Dst>::min());
    constexpr double highest = static_cast<double>(std::numeric_limits<Dst>::max());
    if (x <= lowest) return std::numeric_limits<Dst>::min();
    if (x >= highest) return std::numeric_limits<Dst>::max();
    return static_cast<Dst>(x);
}

template <class Dst, class Src>
Dst convert(Src s, const Mode& m) {
    if constexpr (is_float<Src>) {
        double x;
        if constexpr (std::is_same_v<Src, double>)
            x = s;
        else
            x = static_cast<double>(static_cast<float>(s));
        if (std::is_same_v<Src, float> && m.ftz) x = static_cast<double>(FlushedFloat::flush(static_cast<float>(x)));
        if constexpr (is_float<Dst>)
            return to_float<Dst>(x, m);
        else
            return to_integer<Dst, Src>(x, m);
    } else if constexpr (is_float<Dst>) {
        return rounded<Dst>(static_cast<long double>(s), m.rounding);
    } else {
        using Wide = __int128;
        if (m.saturate) {
            if (static_cast<Wide>(s) < static_cast<Wide>(std::numeric_limits<Dst>::min()))
                return std::numeric_limits<Dst>::min();
            if (static_cast<Wide>(s) > static_cast<Wide>(std::numeric_limits<Dst>::max()))
                return std::numeric_limits<Dst>::max();
        }
        return static_cast<Dst>(s);
    }
}

template <class Dst, class Src>
Flow execute_convert(Warp& w, const Instruction& in, LaneMask lanes) {
    const Operand &to = in.operands[0], &from = in.operands[1];
    const Mode mode = unpack(in.flags);
    for_lanes(lanes, [&](int l) {
        const Src s = from_slot<Src>(static_cast<Slot<Src>>(w.reg(from, l)));
        const Dst d = convert<Dst, Src>(s, mode);
        u64 bits;  // integers fill the register with their sign
        if constexpr (std::is_integral_v<Dst>)
            bits = static_cast<u64>(static_cast<i64>(d));
        else
            bits = to_slot<Dst>(d);
        if constexpr (std::is_unsigned_v<Dst>) bits = d;
        if (to.wide)
            w.reg64(to.slot)[l] = bits;
        else
            w.reg32(to.slot)[l] = static_cast<u32>(bits);
    });
    return Flow::next;
}

template <class Dst>
Handler from(Type source) {
    switch (source) {
        case Type::u8:
            return execute_convert<Dst, u8>;
        case Type::s8:
            return execute_convert<Dst, i8>;
        case Type::u16:
            return execute_convert<Dst, u16>;
        case Type::s16:
            return execute_convert<Dst, i16>;
        case Type::u32:
            return execute_convert<Dst, u32>;
        case Type::s32:
            return execute_convert<Dst, i32>;
        case Type::u64:
            return execute_convert<Dst, u64>;
        case Type::s64:
            return execute_convert<Dst, i64>;
        case Type::f16:
            return execute_convert<Dst, Half>;
        case Type::bf16:
            return execute_convert<Dst, BFloat16>;
        case Type::f32:
            return execute_convert<Dst, float>;
        case Type::f64:
            return execute_convert<Dst, double>;
        default:
            return nullptr;
    }
}

Handler converter(Type to, Type source) {
    switch (to) {
        case Type::u8:
            return from<u8>(source);
        case Type::s8:
            return from<i8>(source);
        case Type::u16:
            return from<u16>(source);
        case Type::s16:
            return from<i16>(source);
        case Type::u32:
            return from<u32>(source);
        case Type::s32:
            return from<i32>(source);
        case Type::u64:
            return from<u64>(source);
        case Type::s64:
            return from<i64>(source);
        case Type::f16:
            return from<Half>(source);
        case Type::bf16:
            return from<BFloat16>(source);
        case Type::f32:
            return from<float>(source);
        case Type::f64:
            return from<double>(source);
        default:
            return nullptr;
    }
}

// tf32 has 10 fraction bits; .rna rounds ties away from zero, .rn to even, .rz cuts.
Flow execute_to_tf32(Warp& w, const Instruction& in, LaneMask lanes) {
    const Rounding r = unpack(in.flags).rounding;
    u32* d = w.reg32(in.dst);
    const u32* a = w.reg32(in.src[0]);
    for_lanes(lanes, [&](int l) {
        u32 x = a[l];
        if ((x & 0x7f800000u) != 0x7f800000u) {
            if (r == Rounding::nearest_away)
                x += 0x1000;
            else if (r == Rounding::nearest)
                x += 0xfff + (x >> 13 & 1);
        }
        d[l] = x & 0xffffe000u;
    });
    return Flow::next;
}

// Two numbers into one register: cvt.bf16x2.f32 d, high, low and its like; 8-bit pairs also from one f16x2.
u32 pair_element(float x, Type pair, const Mode& m) {
    if (m.relu && x < 0) x = 0;
    switch (pair) {
        case Type::f16x2:
            return to_float<Half>(static_cast<double>(x), m).bits;
        case Type::bf16x2:
            return to_float<BFloat16>(static_cast<double>(x), m).bits;
        case Type::e4m3x2:
            return float_to_float8(x, Float8::e4m3);
        default:
            return float_to_float8(x, Float8::e5m2);
    }
}

Flow execute_to_pair(Warp& w, const Instruction& in, LaneMask lanes) {
    Mode mode = unpack(in.flags);
    mode.saturate = false;  // .satfinite is what float_to_float8 does
    const u32 shift = size_of(in.type) == 4 ? 16 : 8;
    const bool from_one = in.operands.size() == 2;
    for_lanes(lanes, [&](int l) {
        float high, low;
        const u32 a = w.reg32(in.src[0])[l];
        if (from_one) {
            high = half_to_float(static_cast<u16>(a >> 16)), low = half_to_float(static_cast<u16>(a));
        } else {
            high = std::bit_cast<float>(a), low = std::bit_cast<float>(w.reg32(in.src[1])[l]);
        }
        w.reg32(in.dst)[l] = pair_element(high, in.type, mode) << shift | pair_element(low, in.type, mode);
    });
    return Flow::next;
}

// cvt.rn.f16x2.e4m3x2
Flow execute_from_float8_pair(Warp& w, const Instruction& in, LaneMask lanes) {
    const Float8 format = in.type2 == Type::e4m3x2 ? Float8::e4m3 : Float8::e5m2;
    const bool relu = unpack(in.flags).relu;
    for_lanes(lanes, [&](int l) {
        const u32 a = w.reg32(in.src[0])[l];
        u32 d = 0;
        for (u32 h = 0; h < 2; ++h) {
            float x = float8_to_float(static_cast<u8>(a >> (8 * h)), format);
            if (relu && x < 0) x = 0;
            d |= static_cast<u32>(float_to_half(x)) << (16 * h);
        }
        w.reg32(in.dst)[l] = d;
    });
    return Flow::next;
}

}  // namespace

void bind_cvt(Binder& b) {
    Instruction& in = b.in;
    if (b.has("pack")) b.unsupported("cvt.pack");
    Mode m{};
    const std::string rounding = b.one_of({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"}, "rn");
    m.to_integral = rounding.size() == 3 && rounding != "rna";
    m.rounding = rounding == "rna"    ? Rounding::nearest_away
                 : rounding[1] == 'z' ? Rounding::zero
                 : rounding[1] == 'm' ? Rounding::down
                 : rounding[1] == 'p' ? Rounding::up
                                      : Rounding::nearest;
    m.ftz = b.has("ftz");
    m.relu = b.has("relu");
    const bool finite = b.has("satfinite");
    m.saturate = b.has("sat");
    in.type = b.type(0);
    in.type2 = b.type(1);
    const bool float8 = in.type == Type::e4m3x2 || in.type == Type::e5m2x2;
    if (finite && !float8) b.unsupported(".satfinite for this type");
    in.flags = pack(m);
    if (in.type == Type::tf32) {
        in.dst = b.destination(0, false);
        in.src[0] = b.source(1, false);
        return b.run(execute_to_tf32, Class::convert);
    }
    if (b.operands() == 3 || float8) {
        if (size_of(in.type) > 4 || (m.rounding != Rounding::nearest && m.rounding != Rounding::zero))
            b.unsupported("this packing");
        if (in.type2 != (b.operands() == 3 ? Type::f32 : Type::f16x2)) b.unsupported("packing from this type");
        in.dst = b.destination(0, false);
        b.sources(1, b.operands() - 1, false);
        return b.run(execute_to_pair, Class::convert);
    }
    if (in.type2 == Type::e4m3x2 || in.type2 == Type::e5m2x2) {
        if (in.type != Type::f16x2) b.unsupported("unpacking into this type");
        in.dst = b.destination(0, false);
        in.src[0] = b.source(1, false);
        return b.run(execute_from_float8_pair, Class::convert);
    }
    const bool to_int = !is_floating(in.type), from_int = !is_floating(in.type2);
    if (m.rounding == Rounding::nearest_away || (to_int && !from_int && !m.to_integral)) b.unsupported("this rounding");
    b.materialize(in.operands.at(0), size_of(in.type) == 8);
    b.materialize(in.operands.at(1), size_of(in.type2) == 8);
    const Handler handler = converter(in.type, in.type2);
    if (!handler) b.unsupported("conversion between these types");
    b.run(handler, Class::convert);
}

}  // namespace emulator
