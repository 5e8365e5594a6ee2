// Arithmetic, logic and comparisons of a lane with itself.
// PTX ISA: 9.7.1 "Integer Arithmetic", 9.7.2 "Extended-Precision Integer Arithmetic", 9.7.3 "Floating-Point",
// 9.7.4 "Half Precision Floating-Point", 9.7.6 "Comparison and Selection", 9.7.7 "Half Precision Comparison",
// 9.7.8 "Logic and Shift", 9.7.9.3 "mov", 9.7.9.7 "prmt".
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>

#include "approximations.h"
#include "instructions.h"
#include "lanes.h"
#include "options.h"

namespace emulator {
namespace {

// ---- Operations. T is a number type of numbers.h or an integer; wrapping is done in unsigned arithmetic.
template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
constexpr auto wrap(T x) {
    return static_cast<std::conditional_t<sizeof(T) == 8, u64, u32>>(x);
}

struct Add {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (is_float<T>)
            return T(a + b);
        else
            return static_cast<T>(wrap(a) + wrap(b));
    }
};
struct Sub {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (is_float<T>)
            return T(a - b);
        else
            return static_cast<T>(wrap(a) - wrap(b));
    }
};
struct Mul {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (is_float<T>)
            return T(a * b);
        else
            return static_cast<T>(wrap(a) * wrap(b));
    }
};
struct MulHigh {
    template <class T>
    static T apply(T a, T b) {
        using Double = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
        return static_cast<T>((static_cast<Double>(a) * static_cast<Double>(b)) >> (8 * sizeof(T)));
    }
};
struct Fma {
    template <class T>
    static T apply(T a, T b, T c) {
        if constexpr (is_half_sized<T>) {
            // The product of two 16-bit floats is exact in double; rounding to odd keeps the one rounding that matters.
            const double exact =
                std::fma(static_cast<double>(static_cast<float>(a)), static_cast<double>(static_cast<float>(b)),
                         static_cast<double>(static_cast<float>(c)));
            return T(round_to_odd(exact));
        } else if constexpr (std::is_same_v<T, FlushedFloat>) {
            return T(std::fma(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)));
        } else if constexpr (is_float<T>) {
            return std::fma(a, b, c);
        } else {
            return static_cast<T>(wrap(a) * wrap(b) + wrap(c));
        }
    }
};
struct MadHigh {
    template <class T>
    static T apply(T a, T b, T c) {
        return Add::apply<T>(MulHigh::apply<T>(a, b), c);
    }
};
// .sat: into [0, 1], NaN becomes 0. .relu: negative numbers become 0, NaN stays.
template <class F>
struct Saturated {
    template <class T, class... Rest>
    static T apply(T a, Rest... rest) {
        const T r = F::template apply<T>(a, rest...);
        return r > 0 ? (r < 1 ? r : T(1.0f)) : T(0.0f);
    }
};
template <class F>
struct Rectified {
    template <class T, class... Rest>
    static T apply(T a, Rest... rest) {
        const T r = F::template apply<T>(a, rest...);
        return r < 0 ? T(0.0f) : r;
    }
};
// Directed rounding (.rz, .rm, .rp), through the processor's own mode; the barriers keep the operation between the
// switches.
template <class F, int Mode>
struct RoundedBy {
    template <class T, class... Rest>
    static T apply(T a, Rest... rest) {
        const int before = std::fegetround();
        std::fesetround(Mode);
        asm volatile("" : "+m"(a)::"memory");
        T r = F::template apply<T>(a, rest...);
        asm volatile("" : "+m"(r)::"memory");
        std::fesetround(before);
        return r;
    }
};
struct Div {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (is_float<T>)
            return T(a / b);
        else if (b == 0)
            return static_cast<T>(-1);  // "behaviour is undefined"; hardware gives ones
        else if (std::is_signed_v<T> && b == static_cast<T>(-1))
            return static_cast<T>(0 - wrap(a));
        else
            return static_cast<T>(a / b);
    }
};
struct Rem {
    template <class T>
    static T apply(T a, T b) {
        if (b == 0) return a;
        if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
        return static_cast<T>(a % b);
    }
};
// A NaN loses against a number, unless .NaN is given; -0 is less than +0.
template <bool Larger, bool KeepNan>
struct Pick {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (std::is_same_v<T, double>)
            return of(a, b);
        else if constexpr (is_float<T>)
            return T(of(static_cast<float>(a), static_cast<float>(b)));
        else
            return (a < b) != Larger ? a : b;
    }
    template <class F>
    static F of(F a, F b) {
        if (std::isnan(a)) return KeepNan ? a : b;
        if (std::isnan(b)) return KeepNan ? b : a;
        if (a == b) return std::signbit(a) != Larger ? a : b;
        return (a < b) != Larger ? a : b;
    }
};
template <bool Larger, bool KeepNan>
struct PickOf3 {
    template <class T>
    static T apply(T a, T b, T c) {
        using P = Pick<Larger, KeepNan>;
        return P::template apply<T>(P::template apply<T>(a, b), c);
    }
};
struct And {
    template <class T>
    static T apply(T a, T b) {
        return a & b;
    }
};
struct Or {
    template <class T>
    static T apply(T a, T b) {
        return a | b;
    }
};
struct Xor {
    template <class T>
    static T apply(T a, T b) {
        return a ^ b;
    }
};
struct Not {
    template <class T>
    static T apply(T a) {
        return static_cast<T>(~a);
    }
};
struct Neg {
    template <class T>
    static T apply(T a) {
        if constexpr (is_float<T>)
            return T(-a);
        else
            return static_cast<T>(0 - wrap(a));
    }
};
struct Abs {
    template <class T>
    static T apply(T a) {
        if constexpr (is_half_sized<T>)
            return T(std::fabs(static_cast<float>(a)));
        else if constexpr (std::is_same_v<T, FlushedFloat>)
            return T(std::fabs(static_cast<float>(a)));
        else if constexpr (is_float<T>)
            return std::fabs(a);
        else if constexpr (std::is_signed_v<T>)
            return a < 0 ? static_cast<T>(0 - wrap(a)) : a;
        else
            return a;
    }
};
struct Copysign {  // copysign d, a, b: b with the sign of a
    template <class T>
    static T apply(T a, T b) {
        return T(std::copysign(b, a));
    }
};
struct Sad {
    template <class T>
    static T apply(T a, T b, T c) {
        return static_cast<T>(wrap(c) + (a < b ? wrap(b) - wrap(a) : wrap(a) - wrap(b)));
    }
};
struct Sqrt {
    template <class T>
    static T apply(T a) {
        if constexpr (std::is_same_v<T, double>)
            return std::sqrt(a);
        else
            return T(std::sqrt(static_cast<float>(a)));
    }
};
struct Reciprocal {
    template <class T>
    static T apply(T a) {
        if constexpr (std::is_same_v<T, double>)
            return 1.0 / a;
        else
            return T(1.0f / static_cast<float>(a));
    }
};
template <Approximate Function>
struct Approximated {
    template <class T>
    static T apply(T a) {
        if constexpr (std::is_same_v<T, double>)
            return approximate64(Function, a);
        else
            return T(approximate(Function, static_cast<float>(a)));
    }
};
struct ApproximateDiv {
    template <class T>
    static T apply(T a, T b) {
        if constexpr (std::is_same_v<T, double>)
            return a / b;
        else
            return T(approximate_quotient(static_cast<float>(a), static_cast<float>(b)));
    }
};

// ---- Choosing handlers
template <class T, class F, int Sources>
Handler rounded_by(const std::string& mode) {
    return mode == "rz"   ? lanewise<T, RoundedBy<F, FE_TOWARDZERO>, Sources>()
           : mode == "rm" ? lanewise<T, RoundedBy<F, FE_DOWNWARD>, Sources>()
                          : lanewise<T, RoundedBy<F, FE_UPWARD>, Sources>();
}

template <class F, int Sources>
Handler rounded(Binder& b, Type type, bool ftz) {
    const std::string mode = b.one_of({"rn", "rz", "rm", "rp"}, "rn");
    if (mode == "rn") return for_float_type<F, Sources>(type, ftz);
    if (type == Type::f64) return rounded_by<double, F, Sources>(mode);
    if (type != Type::f32) return nullptr;
    return ftz ? rounded_by<FlushedFloat, F, Sources>(mode) : rounded_by<float, F, Sources>(mode);
}

template <class F, int Sources>
Handler rounded_or_clamped(Binder& b, Type type, bool ftz) {
    const bool sat = b.has("sat"), relu = b.has("relu");
    const Handler plain = rounded<F, Sources>(b, type, ftz);
    if ((sat || relu) && (b.has("rz") || b.has("rm") || b.has("rp"))) return nullptr;
    if (sat) return for_float_type<Saturated<F>, Sources>(type, ftz);
    if (relu) return for_float_type<Rectified<F>, Sources>(type, ftz);
    return plain;
}

Class class_of(Type type) {
    return type == Type::f64 ? Class::fp64 : is_floating(type) ? Class::fp32 : Class::integer;
}

void finish(Binder& b, Handler handler, Type type) {
    if (!handler) b.unsupported("not for this type and rounding");
    b.run(handler, class_of(type));
}

Type operands_of(Binder& b, std::size_t sources) {
    const Type type = b.last_type();
    if (type == Type::none) b.unsupported("it has no type");
    const bool wide = size_of(type) == 8;
    b.in.type = type;
    b.in.dst = b.destination(0, wide);
    b.sources(1, sources, wide);
    return type;
}

// ---- Predicates
// Operands of and.pred and the like: a predicate, or the constants 0 and 1.
LaneMask predicate_value(Warp& w, const Operand& o) {
    if (o.kind == Operand::Kind::immediate) return o.value ? kAllLanes : 0;
    return w.predicate(static_cast<i32>(o.slot), o.negated);
}

Flow execute_predicate_logic(Warp& w, const Instruction& in, LaneMask lanes) {
    const LaneMask a = predicate_value(w, in.operands[1]);
    const LaneMask b = in.operands.size() > 2 ? predicate_value(w, in.operands[2]) : 0;
    const LaneMask r = in.opcode == "mov"   ? a
                       : in.opcode == "not" ? ~a
                       : in.opcode == "and" ? a & b
                       : in.opcode == "or"  ? a | b
                                            : a ^ b;
    w.set_predicate(in.predicate_dst, lanes, r);
    return Flow::next;
}

bool bind_predicate_logic(Binder& b) {
    if (b.last_type() != Type::pred) return false;
    b.in.predicate_dst = b.predicate_destination(0);
    b.run(execute_predicate_logic, Class::integer);
    return true;
}

// ---- mul.wide, mad.wide: 16 x 16 to 32 bits, 32 x 32 to 64 bits. variant: 1 adds src[2].
Flow execute_mul_wide(Warp& w, const Instruction& in, LaneMask lanes) {
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]);
    const bool is_signed_type = is_signed(in.type);
    if (size_of(in.type) == 2) {
        u32* d = w.reg32(in.dst);
        const u32* c = w.reg32(in.src[2]);
        for_lanes(lanes, [&](int l) {
            const u32 product = is_signed_type ? static_cast<u32>(static_cast<i16>(a[l]) * static_cast<i16>(b[l]))
                                               : static_cast<u32>(static_cast<u16>(a[l])) * static_cast<u16>(b[l]);
            d[l] = product + (in.variant ? c[l] : 0);
        });
    } else {
        u64* d = w.reg64(in.dst);
        const u64* c = w.reg64(in.src[2]);
        for_lanes(lanes, [&](int l) {
            const u64 product =
                is_signed_type ? static_cast<u64>(static_cast<i64>(static_cast<i32>(a[l])) * static_cast<i32>(b[l]))
                               : static_cast<u64>(a[l]) * b[l];
            d[l] = product + (in.variant ? c[l] : 0);
        });
    }
    return Flow::next;
}

void bind_wide(Binder& b, bool adds) {
    b.in.type = b.last_type();
    const bool wide = size_of(b.in.type) == 4;
    b.in.dst = b.destination(0, wide);
    b.sources(1, 2, false);
    if (adds)
        b.in.src[2] = b.source(3, wide);
    else
        b.in.src[2] = b.in.dst;
    b.in.variant = adds;
    b.run(execute_mul_wide, Class::integer);
}

// ---- add.cc, addc, sub.cc, subc, mad.lo.cc, madc.lo/hi. flags: 1 sets the carry, 2 takes it, 4 subtracts.
Flow execute_with_carry(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool wide = size_of(in.type) == 8;
    LaneMask carry = w.carry;
    for_lanes(lanes, [&](int l) {
        using Wide = unsigned __int128;
        const auto get = [&](u32 slot) { return wide ? static_cast<Wide>(w.reg64(slot)[l]) : w.reg32(slot)[l]; };
        Wide a = get(in.src[0]), b = get(in.src[1]);
        const int bits = wide ? 64 : 32;
        const Wide mask = (static_cast<Wide>(1) << bits) - 1;
        if (in.variant) {  // mad: a becomes the low (1) or high (2) half of the product, b the addend
            a = in.variant == 1 ? (a * b & mask) : (a * b >> bits & mask);
            b = get(in.src[2]);
        }
        const Wide taken = in.flags & 2 ? w.carry >> l & 1 : 0;
        const Wide r = in.flags & 4 ? a - b - taken : a + b + taken;
        if (wide)
            w.reg64(in.dst)[l] = static_cast<u64>(r);
        else
            w.reg32(in.dst)[l] = static_cast<u32>(r);
        if (in.flags & 1) carry = (carry & ~(1u << l)) | static_cast<u32>(r >> bits & 1) << l;
    });
    w.carry = carry;
    return Flow::next;
}

void bind_carry(Binder& b, bool takes, bool subtracts) {
    operands_of(b, 2);
    b.in.flags = (b.has("cc") ? 1u : 0u) | (takes ? 2u : 0u) | (subtracts ? 4u : 0u);
    b.run(execute_with_carry, Class::integer);
}

// ---- Shifts and bits
Flow execute_shift(Warp& w, const Instruction& in, LaneMask lanes) {
    const u32* by = w.reg32(in.src[1]);
    const u32 bits = static_cast<u32>(size_of(in.type)) * 8;
    const bool left = in.variant, arithmetic = is_signed(in.type);
    for_lanes(lanes, [&](int l) {
        const u64 raw = bits == 64 ? w.reg64(in.src[0])[l] : w.reg32(in.src[0])[l];
        const i64 extended = static_cast<i64>(raw << (64 - bits)) >> (64 - bits);
        const u64 x = raw & (bits == 64 ? ~0ull : (1ull << bits) - 1);
        u64 r;
        if (left)
            r = by[l] >= bits ? 0 : x << by[l];
        else if (arithmetic)
            r = static_cast<u64>(extended >> std::min(by[l], bits - 1));
        else
            r = by[l] >= bits ? 0 : x >> by[l];
        if (bits == 64)
            w.reg64(in.dst)[l] = r;
        else
            w.reg32(in.dst)[l] = bits == 32 ? static_cast<u32>(r) : static_cast<u16>(r);
    });
    return Flow::next;
}

// 32-bit shifts are in every address; they get loops of their own.
struct ShiftLeft32 {
    template <class T>
    static T apply(T a, T by) {
        return by > 31 ? 0 : a << by;
    }
};
struct ShiftRight32 {
    template <class T>
    static T apply(T a, T by) {
        return by > 31 ? 0 : a >> by;
    }
};
struct ShiftRightSigned32 {
    template <class T>
    static T apply(T a, T by) {
        return static_cast<T>(static_cast<i32>(a) >> std::min(by, 31u));
    }
};

void bind_shift(Binder& b, bool left) {
    const Type type = b.last_type();
    const bool wide = size_of(type) == 8;
    b.in.type = type;
    b.in.dst = b.destination(0, wide);
    b.in.src[0] = b.source(1, wide);
    b.in.src[1] = b.source(2, false);
    b.in.variant = left;
    if (size_of(type) == 4) {
        b.run(left              ? lanewise2<u32, ShiftLeft32>
              : is_signed(type) ? lanewise2<u32, ShiftRightSigned32>
                                : lanewise2<u32, ShiftRight32>,
              Class::integer);
    } else {
        b.run(execute_shift, Class::integer);
    }
}

// shf: 32 bits of the 64-bit {b, a}. variant: 1 left; flags: 1 clamps the count to 32, else it wraps.
Flow execute_funnel_shift(Warp& w, const Instruction& in, LaneMask lanes) {
    u32* d = w.reg32(in.dst);
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]), *c = w.reg32(in.src[2]);
    for_lanes(lanes, [&](int l) {
        const u32 by = in.flags ? std::min(c[l], 32u) : c[l] & 31;
        const u64 both = static_cast<u64>(b[l]) << 32 | a[l];
        d[l] = in.variant ? static_cast<u32>((by == 32 ? static_cast<u64>(a[l]) << 32 : both << by) >> 32)
                          : static_cast<u32>(by == 32 ? b[l] : both >> by);
    });
    return Flow::next;
}

// prmt: each result byte is one of the eight of {b, a}, or its sign repeated.
Flow execute_permute(Warp& w, const Instruction& in, LaneMask lanes) {
    u32* d = w.reg32(in.dst);
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]), *c = w.reg32(in.src[2]);
    for_lanes(lanes, [&](int l) {
        const u64 both = static_cast<u64>(b[l]) << 32 | a[l];
        u32 r = 0;
        for (u32 k = 0; k < 4; ++k) {
            const u32 pick = c[l] >> (4 * k) & 15;
            u32 byte = static_cast<u32>(both >> (8 * (pick & 7))) & 255;
            if (pick & 8) byte = byte & 128 ? 255 : 0;
            r |= byte << (8 * k);
        }
        d[l] = r;
    });
    return Flow::next;
}

// lop3: any function of three bits; bit (4a + 2b + c) of the table is its value.
Flow execute_lop3(Warp& w, const Instruction& in, LaneMask lanes) {
    u32* d = w.reg32(in.dst);
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]), *c = w.reg32(in.src[2]);
    u32 table[8];
    for (int i = 0; i < 8; ++i) table[i] = in.variant >> i & 1 ? ~0u : 0;
    for_lanes(lanes, [&](int l) {
        const u32 x = a[l], y = b[l], z = c[l];
        const u32 with_a = (y & ((z & table[7]) | (~z & table[6]))) | (~y & ((z & table[5]) | (~z & table[4])));
        const u32 without = (y & ((z & table[3]) | (~z & table[2]))) | (~y & ((z & table[1]) | (~z & table[0])));
        d[l] = (x & with_a) | (~x & without);
    });
    return Flow::next;
}

Flow execute_bit_extract(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool wide = size_of(in.type) == 8;
    const u32 bits = wide ? 64 : 32;
    for_lanes(lanes, [&](int l) {
        const u64 a = wide ? w.reg64(in.src[0])[l] : w.reg32(in.src[0])[l];
        const u32 position = w.reg32(in.src[1])[l] & 255, length = w.reg32(in.src[2])[l] & 255;
        const u64 sign = length && is_signed(in.type) ? a >> std::min(position + length - 1, bits - 1) & 1 : 0;
        u64 r = 0;
        for (u32 k = 0; k < bits; ++k) r |= (k < length && position + k < bits ? a >> (position + k) & 1 : sign) << k;
        if (wide)
            w.reg64(in.dst)[l] = r;
        else
            w.reg32(in.dst)[l] = static_cast<u32>(r);
    });
    return Flow::next;
}

Flow execute_bit_insert(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool wide = size_of(in.type) == 8;
    const u32 bits = wide ? 64 : 32;
    for_lanes(lanes, [&](int l) {
        const u64 a = wide ? w.reg64(in.src[0])[l] : w.reg32(in.src[0])[l];
        u64 r = wide ? w.reg64(in.src[1])[l] : w.reg32(in.src[1])[l];
        const u32 position = w.reg32(in.src[2])[l] & 255, length = w.reg32(in.src[3])[l] & 255;
        for (u32 k = 0; k < length && position + k < bits; ++k)
            r = (r & ~(1ull << (position + k))) | (a >> k & 1) << (position + k);
        if (wide)
            w.reg64(in.dst)[l] = r;
        else
            w.reg32(in.dst)[l] = static_cast<u32>(r);
    });
    return Flow::next;
}

enum class Bits : u32 { popc, clz, brev, bfind, cnot };
Flow execute_bits(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool wide = size_of(in.type) == 8;
    const int bits = wide ? 64 : 32;
    for_lanes(lanes, [&](int l) {
        u64 a = wide ? w.reg64(in.src[0])[l] : w.reg32(in.src[0])[l];
        u64 r = 0;
        switch (static_cast<Bits>(in.variant)) {
            case Bits::popc:
                r = static_cast<u64>(std::popcount(a));
                break;
            case Bits::clz:
                r = static_cast<u64>(std::countl_zero(a) - (64 - bits));
                break;
            case Bits::brev:
                for (int k = 0; k < bits; ++k) r |= (a >> k & 1) << (bits - 1 - k);
                break;
            case Bits::bfind: {
                const bool negative = is_signed(in.type) && (a >> (bits - 1) & 1);
                if (negative) a = ~a & (wide ? ~0ull : 0xffffffffull);
                r = a ? static_cast<u64>(63 - std::countl_zero(a)) : 0xffffffffull;
                if (in.flags && a) r = static_cast<u64>(bits - 1) - r;
                break;
            }
            case Bits::cnot:
                r = a == 0;
                break;
        }
        const bool wide_result =
            wide && (in.variant == static_cast<u32>(Bits::brev) || in.variant == static_cast<u32>(Bits::cnot));
        if (wide_result)
            w.reg64(in.dst)[l] = r;
        else
            w.reg32(in.dst)[l] = static_cast<u32>(r);
    });
    return Flow::next;
}

void bind_bits(Binder& b, Bits op) {
    const Type type = b.last_type();
    const bool wide = size_of(type) == 8;
    b.in.type = type;
    b.in.flags = b.has("shiftamt");
    b.in.variant = static_cast<u32>(op);
    b.in.dst = b.destination(0, wide && (op == Bits::brev || op == Bits::cnot));
    b.in.src[0] = b.source(1, wide);
    b.run(execute_bits, Class::integer);
}

// dp4a: four products of bytes added to c. dp2a: two, of the 16-bit halves of a and bytes of b from the first (.lo) or
// third (.hi) on. type, type2: of a and b; count: products; variant: b's first byte.
Flow execute_dot_product(Warp& w, const Instruction& in, LaneMask lanes) {
    const auto part = [](u32 x, u32 bytes, u32 k, Type type) {
        const u32 bits = 8 * bytes, raw = x >> (bits * k) & ((1u << bits) - 1);
        return type == Type::s32 && raw >> (bits - 1) ? static_cast<i32>(raw) - (1 << bits) : static_cast<i32>(raw);
    };
    for_lanes(lanes, [&](int l) {
        const u32 a = w.reg32(in.src[0])[l], b = w.reg32(in.src[1])[l];
        u32 sum = w.reg32(in.src[2])[l];
        for (u32 k = 0; k < in.count; ++k)
            sum += static_cast<u32>(part(a, 4 / in.count, k, in.type) * part(b, 1, in.variant + k, in.type2));
        w.reg32(in.dst)[l] = sum;
    });
    return Flow::next;
}

// ---- Comparison and selection
enum class Compare : u32 { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <class T>
bool compare(Compare how, T a, T b) {
    bool nan = false;
    if constexpr (is_float<T>) nan = std::isnan(static_cast<double>(a)) || std::isnan(static_cast<double>(b));
    switch (how) {
        case Compare::eq:
            return !nan && a == b;
        case Compare::ne:
            return !nan && a != b;
        case Compare::lt:
            return !nan && a < b;
        case Compare::le:
            return !nan && a <= b;
        case Compare::gt:
            return !nan && a > b;
        case Compare::ge:
            return !nan && a >= b;
        case Compare::equ:
            return nan || a == b;
        case Compare::neu:
            return nan || a != b;
        case Compare::ltu:
            return nan || a < b;
        case Compare::leu:
            return nan || a <= b;
        case Compare::gtu:
            return nan || a > b;
        case Compare::geu:
            return nan || a >= b;
        case Compare::num:
            return !nan;
        default:
            return nan;
    }
}

// p|q = (a cmp b) op c. variant: Compare; flags: 1 and, 2 or, 3 xor; predicate_src: c; src[2] holds q + 1 or 0.
void set_compared(Warp& w, const Instruction& in, LaneMask lanes, LaneMask r) {
    LaneMask negated = ~r;
    if (in.predicate_src >= 0) {
        const LaneMask c = w.predicate(in.predicate_src, in.predicate_src_negated);
        r = in.flags == 1 ? r & c : in.flags == 2 ? r | c : r ^ c;
        negated = in.flags == 1 ? negated & c : in.flags == 2 ? negated | c : negated ^ c;
    }
    if (in.opcode == "set") {  // all ones, or 1.0
        u32* d = w.reg32(in.dst);
        const u32 one = in.type2 == Type::f32    ? 0x3f800000u
                        : in.type2 == Type::f16  ? 0x3c00u
                        : in.type2 == Type::bf16 ? 0x3f80u
                                                 : ~0u;
        for_lanes(lanes, [&](int l) { d[l] = r >> l & 1 ? one : 0; });
        return;
    }
    w.set_predicate(in.predicate_dst, lanes, r);
    w.set_predicate(static_cast<i32>(in.src[2]) - 1, lanes, negated);
}

template <class T, Compare How>
LaneMask compare_lanes(const Slot<T>* a, const Slot<T>* b) {
    LaneMask r = 0;
    for (int l = 0; l < kLanes; ++l)
        r |= static_cast<u32>(compare<T>(How, from_slot<T>(a[l]), from_slot<T>(b[l]))) << l;
    return r;
}

template <class T>
Flow execute_compare(Warp& w, const Instruction& in, LaneMask lanes) {
    const Slot<T>*a = registers_of<T>(w, in.src[0]), *b = registers_of<T>(w, in.src[1]);
    LaneMask r = 0;
    switch (static_cast<Compare>(in.variant)) {  // the usual ones without a switch in the loop
        case Compare::eq:
            r = compare_lanes<T, Compare::eq>(a, b);
            break;
        case Compare::ne:
            r = compare_lanes<T, Compare::ne>(a, b);
            break;
        case Compare::lt:
            r = compare_lanes<T, Compare::lt>(a, b);
            break;
        case Compare::le:
            r = compare_lanes<T, Compare::le>(a, b);
            break;
        case Compare::gt:
            r = compare_lanes<T, Compare::gt>(a, b);
            break;
        case Compare::ge:
            r = compare_lanes<T, Compare::ge>(a, b);
            break;
        default:
            for (int l = 0; l < kLanes; ++l)
                r |= static_cast<u32>(
                         compare<T>(static_cast<Compare>(in.variant), from_slot<T>(a[l]), from_slot<T>(b[l])))
                     << l;
    }
    set_compared(w, in, lanes, r);
    return Flow::next;
}

// setp.f16x2 p|q: p of the low halves, q of the high. set.f16x2: 1.0 or 0 in each half.
template <class H>
Flow execute_compare_packed(Warp& w, const Instruction& in, LaneMask lanes) {
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]);
    const Compare how = static_cast<Compare>(in.variant);
    LaneMask low = 0, high = 0;
    for (int l = 0; l < kLanes; ++l) {
        low |= static_cast<u32>(compare<H>(how, from_slot<H>(a[l] & 0xffff), from_slot<H>(b[l] & 0xffff))) << l;
        high |= static_cast<u32>(compare<H>(how, from_slot<H>(a[l] >> 16), from_slot<H>(b[l] >> 16))) << l;
    }
    if (in.opcode == "set") {
        u32* d = w.reg32(in.dst);
        const u32 one = in.type2 == Type::f16x2 ? 0x3c00 : in.type2 == Type::bf16x2 ? 0x3f80 : 0xffff;
        for_lanes(lanes, [&](int l) { d[l] = (low >> l & 1 ? one : 0) | (high >> l & 1 ? one << 16 : 0); });
        return Flow::next;
    }
    w.set_predicate(in.predicate_dst, lanes, low);
    w.set_predicate(static_cast<i32>(in.src[2]) - 1, lanes, high);
    return Flow::next;
}

Handler compare_handler(Type type, bool ftz) {
    switch (type) {
        case Type::u16:
        case Type::b16:
            return execute_compare<u16>;
        case Type::s16:
            return execute_compare<i16>;
        case Type::u32:
        case Type::b32:
            return execute_compare<u32>;
        case Type::s32:
            return execute_compare<i32>;
        case Type::u64:
        case Type::b64:
            return execute_compare<u64>;
        case Type::s64:
            return execute_compare<i64>;
        case Type::f32:
            return ftz ? execute_compare<FlushedFloat> : execute_compare<float>;
        case Type::f64:
            return execute_compare<double>;
        case Type::f16:
            return ftz ? execute_compare<FlushedHalf> : execute_compare<Half>;
        case Type::bf16:
            return execute_compare<BFloat16>;
        case Type::f16x2:
            return ftz ? execute_compare_packed<FlushedHalf> : execute_compare_packed<Half>;
        case Type::bf16x2:
            return execute_compare_packed<BFloat16>;
        default:
            return nullptr;
    }
}

template <class S>
Flow execute_select(Warp& w, const Instruction& in, LaneMask lanes) {
    S* d = registers_of<S>(w, in.dst);
    const S *a = registers_of<S>(w, in.src[0]), *b = registers_of<S>(w, in.src[1]);
    const LaneMask p = w.predicate(in.predicate_src, in.predicate_src_negated);
    for_lanes(lanes, [&](int l) { d[l] = p >> l & 1 ? a[l] : b[l]; });
    return Flow::next;
}

// slct: a if c >= 0, else b. type2: of c; flags: .ftz.
Flow execute_slct(Warp& w, const Instruction& in, LaneMask lanes) {
    for_lanes(lanes, [&](int l) {
        const u32 c = w.reg32(in.src[2])[l];
        const float number = std::bit_cast<float>(c);
        const bool first = in.type2 != Type::f32 ? static_cast<i32>(c) >= 0
                           : in.flags            ? FlushedFloat::flush(number) >= 0
                                                 : number >= 0;
        if (size_of(in.type) == 8)
            w.reg64(in.dst)[l] = w.reg64(in.src[first ? 0 : 1])[l];
        else
            w.reg32(in.dst)[l] = w.reg32(in.src[first ? 0 : 1])[l];
    });
    return Flow::next;
}

// ---- mov
template <class S>
Flow execute_mov(Warp& w, const Instruction& in, LaneMask lanes) {
    S* d = registers_of<S>(w, in.dst);
    const S* a = registers_of<S>(w, in.src[0]);
    for_lanes(lanes, [&](int l) { d[l] = a[l]; });
    return Flow::next;
}

// mov.b64 {a, b}, x and x, {a, b}. count: bytes of an element; variant: 1 takes apart.
Flow execute_mov_vector(Warp& w, const Instruction& in, LaneMask lanes) {
    const bool apart = in.variant;
    const Operand& whole = in.operands[apart ? 1 : 0];
    const std::vector<Operand>& parts = in.operands[apart ? 0 : 1].parts;
    const u32 bits = in.count * 8;
    const u64 mask = (1ull << bits) - 1;
    for_lanes(lanes, [&](int l) {
        if (apart) {
            u64 x = w.reg(whole, l);
            for (const Operand& p : parts) {
                w.reg32(p.slot)[l] = static_cast<u32>(x & mask);
                x >>= bits;
            }
        } else {
            u64 x = 0;
            for (std::size_t k = 0; k < parts.size(); ++k) x |= (w.reg(parts[k], l) & mask) << (bits * k);
            if (whole.wide)
                w.reg64(whole.slot)[l] = x;
            else
                w.reg32(whole.slot)[l] = static_cast<u32>(x);
        }
    });
    return Flow::next;
}

// %clock and the like move on with the instructions that were executed.
Flow execute_mov_clock(Warp& w, const Instruction& in, LaneMask lanes) {
    const u64 now = grid_of(w).executed;
    for_lanes(lanes, [&](int l) {
        if (in.variant)
            w.reg64(in.dst)[l] = now;
        else
            w.reg32(in.dst)[l] = static_cast<u32>(now);
    });
    return Flow::next;
}

template <bool Larger>
void bind_min_max(Binder& b) {
    const bool nan = b.has("NaN"), ftz = b.has("ftz");
    if (b.has("xorsign")) b.unsupported(".xorsign");
    const bool three = b.operands() == 4;
    const bool relu = b.has("relu");
    const Type type = operands_of(b, three ? 3 : 2);
    if (!is_floating(type)) {
        if (relu || three) b.unsupported("this form of integer minimum or maximum");
        return finish(b, for_integer_type<Pick<Larger, false>, 2>(type), type);
    }
    if (three)
        return finish(b,
                      nan ? for_float_type<PickOf3<Larger, true>, 3>(type, ftz)
                          : for_float_type<PickOf3<Larger, false>, 3>(type, ftz),
                      type);
    finish(b,
           nan ? for_float_type<Pick<Larger, true>, 2>(type, ftz) : for_float_type<Pick<Larger, false>, 2>(type, ftz),
           type);
}

template <class Integer, class Float>
void bind_add_or_sub(Binder& b, bool subtracts) {
    if (b.has("cc")) return bind_carry(b, false, subtracts);
    const bool ftz = b.has("ftz");
    const Type type = operands_of(b, 2);
    if (is_floating(type)) return finish(b, rounded_or_clamped<Float, 2>(b, type, ftz), type);
    finish(b, for_integer_type<Integer, 2>(type), type);
}

template <class F>
void bind_logic(Binder& b) {
    if (bind_predicate_logic(b)) return;
    const Type type = operands_of(b, 2);
    finish(b, for_integer_type<F, 2>(type), type);
}

template <Approximate Function>
void bind_special(Binder& b) {
    b.ignore({"approx"});
    const bool ftz = b.has("ftz");
    const Type type = operands_of(b, 1);
    finish(b, for_float_type<Approximated<Function>, 1>(type, ftz), type);
    b.in.klass = Class::special;
}

// sqrt, rcp: rounded if a rounding mode is given, approximate if .approx.
template <class Exact, Approximate Function>
void bind_rounded_or_special(Binder& b) {
    if (b.has("approx")) return bind_special<Function>(b);
    const bool ftz = b.has("ftz");
    const Type type = operands_of(b, 1);
    finish(b, rounded<Exact, 1>(b, type, ftz), type);
    b.in.klass = Class::special;
}

}  // namespace

void bind_add(Binder& b) {
    bind_add_or_sub<Add, Add>(b, false);
}
void bind_sub(Binder& b) {
    bind_add_or_sub<Sub, Sub>(b, true);
}
void bind_addc(Binder& b) {
    bind_carry(b, true, false);
}
void bind_subc(Binder& b) {
    bind_carry(b, true, true);
}

void bind_mul(Binder& b) {
    if (b.has("wide")) return bind_wide(b, false);
    const bool ftz = b.has("ftz");
    const std::string half = b.one_of({"lo", "hi"});
    const Type type = operands_of(b, 2);
    if (is_floating(type)) return finish(b, rounded_or_clamped<Mul, 2>(b, type, ftz), type);
    finish(b, half == "hi" ? for_integer_type<MulHigh, 2>(type) : for_integer_type<Mul, 2>(type), type);
}

void bind_mad(Binder& b) {  // mad, fma
    if (b.has("wide")) return bind_wide(b, true);
    const bool ftz = b.has("ftz");
    const std::string half = b.one_of({"lo", "hi"});
    if (b.has("cc")) {
        operands_of(b, 3);
        b.in.flags = 1;
        b.in.variant = half == "hi" ? 2 : 1;
        return b.run(execute_with_carry, Class::integer);
    }
    const Type type = operands_of(b, 3);
    if (is_floating(type)) return finish(b, rounded_or_clamped<Fma, 3>(b, type, ftz), type);
    finish(b, half == "hi" ? for_integer_type<MadHigh, 3>(type) : for_integer_type<Fma, 3>(type), type);
}

void bind_madc(Binder& b) {
    const std::string half = b.one_of({"lo", "hi"});
    operands_of(b, 3);
    b.in.flags = 2u | (b.has("cc") ? 1u : 0u);
    b.in.variant = half == "hi" ? 2 : 1;
    b.run(execute_with_carry, Class::integer);
}

void bind_div(Binder& b) {
    const bool ftz = b.has("ftz"), approximate = b.has("approx") || b.has("full");
    const Type type = operands_of(b, 2);
    if (!is_floating(type)) return finish(b, for_integer_type<Div, 2>(type), type);
    finish(b, approximate ? for_float_type<ApproximateDiv, 2>(type, ftz) : rounded<Div, 2>(b, type, ftz), type);
    b.in.klass = Class::special;
}

void bind_rem(Binder& b) {
    const Type type = operands_of(b, 2);
    finish(b, for_integer_type<Rem, 2>(type), type);
}

void bind_min(Binder& b) {
    bind_min_max<false>(b);
}
void bind_max(Binder& b) {
    bind_min_max<true>(b);
}
void bind_and(Binder& b) {
    bind_logic<And>(b);
}
void bind_or(Binder& b) {
    bind_logic<Or>(b);
}
void bind_xor(Binder& b) {
    bind_logic<Xor>(b);
}

void bind_not(Binder& b) {
    if (bind_predicate_logic(b)) return;
    const Type type = operands_of(b, 1);
    finish(b, for_integer_type<Not, 1>(type), type);
}

void bind_neg(Binder& b) {
    const bool ftz = b.has("ftz");
    const Type type = operands_of(b, 1);
    finish(b, is_floating(type) ? for_float_type<Neg, 1>(type, ftz) : for_integer_type<Neg, 1>(type), type);
}

void bind_abs(Binder& b) {
    const bool ftz = b.has("ftz");
    const Type type = operands_of(b, 1);
    finish(b, is_floating(type) ? for_float_type<Abs, 1>(type, ftz) : for_integer_type<Abs, 1>(type), type);
}

void bind_copysign(Binder& b) {
    const Type type = operands_of(b, 2);
    if (type != Type::f32 && type != Type::f64) b.unsupported("copysign of this type");
    b.run(type == Type::f32 ? lanewise2<float, Copysign> : lanewise2<double, Copysign>, class_of(type));
}

void bind_sad(Binder& b) {
    const Type type = operands_of(b, 3);
    finish(b, for_integer_type<Sad, 3>(type), type);
}

void bind_sqrt(Binder& b) {
    bind_rounded_or_special<Sqrt, Approximate::sqrt>(b);
}
void bind_rcp(Binder& b) {
    bind_rounded_or_special<Reciprocal, Approximate::rcp>(b);
}
void bind_rsqrt(Binder& b) {
    bind_special<Approximate::rsqrt>(b);
}
void bind_ex2(Binder& b) {
    bind_special<Approximate::ex2>(b);
}
void bind_lg2(Binder& b) {
    bind_special<Approximate::lg2>(b);
}
void bind_sin(Binder& b) {
    bind_special<Approximate::sin>(b);
}
void bind_cos(Binder& b) {
    bind_special<Approximate::cos>(b);
}
void bind_tanh(Binder& b) {
    bind_special<Approximate::tanh>(b);
}

void bind_shl(Binder& b) {
    bind_shift(b, true);
}
void bind_shr(Binder& b) {
    bind_shift(b, false);
}

void bind_shf(Binder& b) {
    b.in.variant = b.one_of({"l", "r"}) == "l";
    b.in.flags = b.one_of({"clamp", "wrap"}) == "clamp";
    operands_of(b, 3);
    b.run(execute_funnel_shift, Class::integer);
}

void bind_prmt(Binder& b) {  // the modes .f4e and so on are refused: nobody asks for them
    operands_of(b, 3);
    b.run(execute_permute, Class::integer);
}

void bind_lop3(Binder& b) {
    operands_of(b, 3);
    b.in.variant = static_cast<u32>(b.immediate(4));
    b.run(execute_lop3, Class::integer);
}

void bind_bfe(Binder& b) {
    const bool wide = size_of(b.in.type = b.last_type()) == 8;
    b.in.dst = b.destination(0, wide);
    b.in.src[0] = b.source(1, wide);
    b.in.src[1] = b.source(2, false);
    b.in.src[2] = b.source(3, false);
    b.run(execute_bit_extract, Class::integer);
}

void bind_bfi(Binder& b) {
    const bool wide = size_of(b.in.type = b.last_type()) == 8;
    b.in.dst = b.destination(0, wide);
    b.sources(1, 2, wide);
    b.in.src[2] = b.source(3, false);
    b.in.src[3] = b.source(4, false);
    b.run(execute_bit_insert, Class::integer);
}

void bind_popc(Binder& b) {
    bind_bits(b, Bits::popc);
}
void bind_clz(Binder& b) {
    bind_bits(b, Bits::clz);
}
void bind_brev(Binder& b) {
    bind_bits(b, Bits::brev);
}
void bind_bfind(Binder& b) {
    bind_bits(b, Bits::bfind);
}
void bind_cnot(Binder& b) {
    bind_bits(b, Bits::cnot);
}

void bind_dot_product(Binder& b) {  // dp4a, dp2a
    b.in.count = b.in.opcode == "dp4a" ? 4 : 2;
    b.in.variant = b.one_of({"lo", "hi"}) == "hi" ? 2 : 0;
    b.in.type = b.type(0);
    b.in.type2 = b.type(1);
    b.in.dst = b.destination(0, false);
    b.sources(1, 3, false);
    b.run(execute_dot_product, Class::integer);
}

void bind_setp(Binder& b) {  // setp, set
    static const std::map<std::string, Compare> names = {
        {"eq", Compare::eq},   {"ne", Compare::ne},   {"lt", Compare::lt},   {"le", Compare::le},
        {"gt", Compare::gt},   {"ge", Compare::ge},   {"lo", Compare::lt},   {"ls", Compare::le},
        {"hi", Compare::gt},   {"hs", Compare::ge},   {"equ", Compare::equ}, {"neu", Compare::neu},
        {"ltu", Compare::ltu}, {"leu", Compare::leu}, {"gtu", Compare::gtu}, {"geu", Compare::geu},
        {"num", Compare::num}, {"nan", Compare::nan}};
    Instruction& in = b.in;
    if (in.modifiers.empty() || !names.contains(in.modifiers[0])) b.unsupported("unknown comparison");
    b.has(in.modifiers[0]);
    in.variant = static_cast<u32>(names.at(in.modifiers[0]));
    const std::string combine = b.one_of({"and", "or", "xor"});
    in.flags = combine == "and" ? 1 : combine == "or" ? 2 : 3;
    const bool ftz = b.has("ftz");
    const Type type = b.last_type();
    in.type = type;
    in.type2 = b.type(0);
    b.sources(1, 2, size_of(type) == 8);
    in.src[2] = 0;
    if (b.operands() > 3) b.predicate_source(3);
    if (in.opcode == "set") {
        in.dst = b.destination(0, false);
    } else {
        in.predicate_dst = b.predicate_destination(0);
        in.src[2] = static_cast<u32>(b.operand(0).paired_predicate + 1);
    }
    const Handler handler = compare_handler(type, ftz);
    if (!handler) b.unsupported("comparison of this type");
    b.run(handler, class_of(type));
}

void bind_selp(Binder& b) {
    const bool wide = size_of(operands_of(b, 2)) == 8;
    b.predicate_source(3);
    b.run(wide ? execute_select<u64> : execute_select<u32>, Class::integer);
}

void bind_slct(Binder& b) {
    b.in.flags = b.has("ftz");
    b.in.type = b.type(0);
    b.in.type2 = b.type(1);
    const bool wide = size_of(b.in.type) == 8;
    b.in.dst = b.destination(0, wide);
    b.sources(1, 2, wide);
    b.in.src[2] = b.source(3, false);
    b.run(execute_slct, Class::integer);
}

void bind_mov(Binder& b) {
    if (bind_predicate_logic(b)) return;
    const Type type = b.last_type();
    const bool wide = size_of(type) == 8;
    if (type == Type::b128) b.unsupported("128-bit registers");
    const bool apart = b.operand(0).kind == Operand::Kind::vector;
    if (apart || b.operand(1).kind == Operand::Kind::vector) {
        const std::size_t parts = b.in.operands[apart ? 0 : 1].parts.size();
        b.in.count = static_cast<u32>(size_of(type)) / static_cast<u32>(parts);
        b.in.variant = apart;
        b.vector(apart ? 0 : 1, false);
        if (apart)
            b.source(1, wide);
        else
            b.destination(0, wide);
        return b.run(execute_mov_vector, Class::move);
    }
    b.in.dst = b.destination(0, wide);
    const Operand& from = b.operand(1);
    if (from.kind == Operand::Kind::symbol && from.name[0] == '%') {
        const Special s = special_registers().at(from.name);
        if (s == Special::clock || s == Special::clock64) {
            b.in.variant = wide;
            return b.run(execute_mov_clock, Class::move);
        }
    }
    b.in.src[0] = b.source(1, wide);
    b.run(wide ? execute_mov<u64> : execute_mov<u32>, Class::move);
}

}  // namespace emulator
