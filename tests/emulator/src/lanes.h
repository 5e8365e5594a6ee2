// One operation on the 32 lanes of a warp: registers to numbers, the operation, numbers to registers.
#pragma once
#include <type_traits>

#include "linker.h"
#include "state.h"

namespace emulator {

// Numbers of up to 32 bits live in registers of 32, those of 64 in registers of 64.
template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, u64, u32>;

template <class T>
inline T from_slot(Slot<T> s) {
    if constexpr (sizeof(T) >= 4)
        return std::bit_cast<T>(s);
    else if constexpr (sizeof(T) == 2)
        return std::bit_cast<T>(static_cast<u16>(s));
    else
        return std::bit_cast<T>(static_cast<u8>(s));
}
template <class T>
inline Slot<T> to_slot(T x) {
    if constexpr (sizeof(T) >= 4)
        return std::bit_cast<Slot<T>>(x);
    else if constexpr (sizeof(T) == 2)
        return std::bit_cast<u16>(x);
    else
        return std::bit_cast<u8>(x);
}
template <class T>
inline Slot<T>* registers_of(Warp& w, u32 slot) {
    if constexpr (sizeof(T) == 8)
        return w.reg64(slot);
    else
        return w.reg32(slot);
}

// dst = F(src[0], ...), F being a struct with a static template apply().
template <class T, class F>
Flow lanewise1(Warp& w, const Instruction& in, LaneMask lanes) {
    Slot<T>* d = registers_of<T>(w, in.dst);
    const Slot<T>* a = registers_of<T>(w, in.src[0]);
    for_lanes(lanes, [&](int l) { d[l] = to_slot<T>(F::template apply<T>(from_slot<T>(a[l]))); });
    return Flow::next;
}
template <class T, class F>
Flow lanewise2(Warp& w, const Instruction& in, LaneMask lanes) {
    Slot<T>* d = registers_of<T>(w, in.dst);
    const Slot<T>*a = registers_of<T>(w, in.src[0]), *b = registers_of<T>(w, in.src[1]);
    for_lanes(lanes, [&](int l) { d[l] = to_slot<T>(F::template apply<T>(from_slot<T>(a[l]), from_slot<T>(b[l]))); });
    return Flow::next;
}
template <class T, class F>
Flow lanewise3(Warp& w, const Instruction& in, LaneMask lanes) {
    Slot<T>* d = registers_of<T>(w, in.dst);
    const Slot<T>*a = registers_of<T>(w, in.src[0]), *b = registers_of<T>(w, in.src[1]),
          *c = registers_of<T>(w, in.src[2]);
    for_lanes(lanes, [&](int l) {
        d[l] = to_slot<T>(F::template apply<T>(from_slot<T>(a[l]), from_slot<T>(b[l]), from_slot<T>(c[l])));
    });
    return Flow::next;
}

// The same on the two halves of a 32-bit register, for f16x2 and bf16x2.
template <class H, class F, class... Sources>
inline u32 on_halves(Sources... x) {
    const u32 low = to_slot<H>(F::template apply<H>(from_slot<H>(x & 0xffff)...));
    return low | to_slot<H>(F::template apply<H>(from_slot<H>(x >> 16)...)) << 16;
}
template <class H, class F, int Sources>
Flow packed(Warp& w, const Instruction& in, LaneMask lanes) {
    u32* d = w.reg32(in.dst);
    const u32 *a = w.reg32(in.src[0]), *b = w.reg32(in.src[1]), *c = w.reg32(in.src[2]);
    for_lanes(lanes, [&](int l) {
        if constexpr (Sources == 1)
            d[l] = on_halves<H, F>(a[l]);
        else if constexpr (Sources == 2)
            d[l] = on_halves<H, F>(a[l], b[l]);
        else
            d[l] = on_halves<H, F>(a[l], b[l], c[l]);
    });
    return Flow::next;
}

template <class T, class F, int Sources>
constexpr Handler lanewise() {
    if constexpr (Sources == 1)
        return lanewise1<T, F>;
    else if constexpr (Sources == 2)
        return lanewise2<T, F>;
    else
        return lanewise3<T, F>;
}

// The handler of F for the instruction's type; null if there is none.
template <class F, int Sources>
Handler for_float_type(Type type, bool ftz) {
    switch (type) {
        case Type::f32:
            return ftz ? lanewise<FlushedFloat, F, Sources>() : lanewise<float, F, Sources>();
        case Type::f64:
            return lanewise<double, F, Sources>();
        case Type::f16:
            return ftz ? lanewise<FlushedHalf, F, Sources>() : lanewise<Half, F, Sources>();
        case Type::bf16:
            return ftz ? lanewise<FlushedBFloat16, F, Sources>() : lanewise<BFloat16, F, Sources>();
        case Type::f16x2:
            return ftz ? packed<FlushedHalf, F, Sources> : packed<Half, F, Sources>;
        case Type::bf16x2:
            return ftz ? packed<FlushedBFloat16, F, Sources> : packed<BFloat16, F, Sources>;
        default:
            return nullptr;
    }
}
template <class F, int Sources>
Handler for_integer_type(Type type) {
    switch (type) {
        case Type::u16:
        case Type::b16:
            return lanewise<u16, F, Sources>();
        case Type::s16:
            return lanewise<i16, F, Sources>();
        case Type::u32:
        case Type::b32:
            return lanewise<u32, F, Sources>();
        case Type::s32:
            return lanewise<i32, F, Sources>();
        case Type::u64:
        case Type::b64:
            return lanewise<u64, F, Sources>();
        case Type::s64:
            return lanewise<i64, F, Sources>();
        default:
            return nullptr;
    }
}

}  // namespace emulator
