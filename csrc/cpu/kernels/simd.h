// Vectors of the instruction set that this translation unit is compiled for.
//
// Every file in this folder is compiled once per instruction set with PYGPT_ISA set to a member of Isa, and is written
// once against `Vec<float>` (and `Vec<double>` in the scalar set, the only one that computes in float64). The scalar
// form, one lane of plain C++, is the specification of the others. Loads and stores convert: float32 or bfloat16 in
// memory, float32 in registers; bfloat16 rounds to nearest even, denormals kept, NaN stays NaN. Pointers need no
// alignment. `count` forms touch only the first `count` lanes (0 to lanes); absent lanes load as zero, so that the tail
// of a row runs the same instructions as its middle.
//
// Everything here has internal linkage: code compiled for one instruction set must never be linked into another's.
#ifndef PYGPT_CPU_KERNELS_SIMD_H
#define PYGPT_CPU_KERNELS_SIMD_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "cpu/features.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pygpt::cpu {
namespace {

constexpr Isa this_isa = Isa::PYGPT_ISA;

// The type that a stored type is computed in.
template <class Storage>
struct Compute {
    using type = float;
};
template <>
struct Compute<double> {
    using type = double;
};
template <class Storage>
using compute_t = typename Compute<Storage>::type;

[[maybe_unused]] inline float to_float(bfloat16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

[[maybe_unused]] inline bfloat16 to_bfloat16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
    return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// One element, in or out, by its stored type.
[[maybe_unused]] inline float read(const float* p) {
    return *p;
}
[[maybe_unused]] inline double read(const double* p) {
    return *p;
}
[[maybe_unused]] inline float read(const bfloat16* p) {
    return to_float(*p);
}
[[maybe_unused]] inline void write(float* p, float value) {
    *p = value;
}
[[maybe_unused]] inline void write(double* p, double value) {
    *p = value;
}
[[maybe_unused]] inline void write(bfloat16* p, float value) {
    *p = to_bfloat16(value);
}

// Zeros, past the cache where there is an instruction for it: a line that is not read first costs half the traffic.
// For memory that is larger than the cache, since nothing of it is left there for who reads it next.
[[maybe_unused]] inline void stream_zeros(void* to, std::size_t bytes) {
#if defined(__AVX2__)
    auto* p = static_cast<char*>(to);
    const std::size_t before = std::min((0 - reinterpret_cast<std::uintptr_t>(p)) % sizeof(__m256i), bytes);
    std::memset(p, 0, before);
    std::size_t i = before;
    for (; i + sizeof(__m256i) <= bytes; i += sizeof(__m256i)) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p + i), _mm256_setzero_si256());
    }
    std::memset(p + i, 0, bytes - i);
#else
    std::memset(to, 0, bytes);
#endif
}
// Before the calling thread says that what it streamed is there. It waits: once a task is enough.
[[maybe_unused]] inline void end_stream() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

template <class T>
struct Vec;

#if !defined(__AVX2__) || defined(PYGPT_SCALAR_ONLY)

template <class T>
struct Vec {
    static constexpr std::int64_t lanes = 1;
    T v;

    static Vec zero() { return {T(0)}; }
    static Vec broadcast(T value) { return {value}; }
    template <class Storage>
    static Vec load(const Storage* p) {
        return {static_cast<T>(read(p))};
    }
    template <class Storage>
    static Vec load(const Storage* p, std::int64_t count) {
        return count > 0 ? load(p) : zero();
    }
    template <class Storage>
    void store(Storage* p) const {
        write(p, v);
    }
    template <class Storage>
    void store(Storage* p, std::int64_t count) const {
        if (count > 0) store(p);
    }
    friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
    friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
    friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
    friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
};

template <class T>
Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {  // a·b + c; this set rounds twice, since std::fma is slow without hardware
    return {a.v * b.v + c.v};
}
template <class T>
Vec<T> max(Vec<T> a, Vec<T> b) {  // b where either is NaN
    return {a.v > b.v ? a.v : b.v};
}
template <class T>
Vec<T> min(Vec<T> a, Vec<T> b) {  // b where either is NaN
    return {a.v < b.v ? a.v : b.v};
}
template <class T>
Vec<T> sqrt(Vec<T> a) {
    return {std::sqrt(a.v)};
}
template <class T>
Vec<T> select_less(Vec<T> a, Vec<T> b, Vec<T> yes, Vec<T> no) {  // a < b ? yes : no
    return {a.v < b.v ? yes.v : no.v};
}
template <class T>
Vec<T> select_first(std::int64_t count, Vec<T> yes, Vec<T> no) {  // lane < count ? yes : no
    return count > 0 ? yes : no;
}
template <class T>
Vec<T> abs(Vec<T> a) {
    return {std::fabs(a.v)};
}
template <class T>
Vec<T> copy_sign(Vec<T> magnitude, Vec<T> sign) {
    return {std::copysign(magnitude.v, sign.v)};
}
template <class T>
T reduce_add(Vec<T> a) {
    return a.v;
}
template <class T>
T reduce_max(Vec<T> a) {
    return a.v;
}
template <class T>
T first_lane(Vec<T> a) {
    return a.v;
}
template <class T>
Vec<T> exp(Vec<T> x) {
    return {std::exp(x.v)};
}
template <class T>
Vec<T> exp2_at_most_one(Vec<T> x) {  // 2^x, 1 for x > 0
    return {std::exp2(x.v > 0 ? T(0) : x.v)};
}
template <class T>
Vec<T> tanh(Vec<T> x) {
    return {std::tanh(x.v)};
}

#else

#if defined(__AVX512F__)

template <>
struct Vec<float> {
    static constexpr std::int64_t lanes = 16;
    __m512 v;

    static __mmask16 first(std::int64_t count) {
        return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1);
    }
    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec broadcast(float value) { return {_mm512_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const bfloat16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static Vec load(const float* p, std::int64_t count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
    static Vec load(const bfloat16* p, std::int64_t count) { return widen(_mm256_maskz_loadu_epi16(first(count), p)); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(bfloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
    void store(float* p, std::int64_t count) const { _mm512_mask_storeu_ps(p, first(count), v); }
    void store(bfloat16* p, std::int64_t count) const { _mm256_mask_storeu_epi16(p, first(count), narrow()); }

    // One permutation where a conversion, a shift and, to narrow, a second conversion would do: layer norm in bfloat16
    // takes a sixth less time.
    static Vec widen(__m256i bits) {
        const __m512i to_upper_halves = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6,
                                                         0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0, 0, 0);
        return {_mm512_castsi512_ps(
            _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, to_upper_halves, _mm512_castsi256_si512(bits)))};
    }
    __m256i narrow() const {
        const __m512i bits = _mm512_castps_si512(v);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
        const __m512i upper_halves = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 31, 29, 27, 25,
                                                      23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
        return _mm512_castsi512_si256(_mm512_permutexvar_epi16(upper_halves, quiet));
    }
    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
};
using Float = Vec<float>;

inline Float fma(Float a, Float b, Float c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Float max(Float a, Float b) {
    return {_mm512_max_ps(a.v, b.v)};
}
inline Float min(Float a, Float b) {
    return {_mm512_min_ps(a.v, b.v)};
}
inline Float sqrt(Float a) {
    return {_mm512_sqrt_ps(a.v)};
}
inline Float select_less(Float a, Float b, Float yes, Float no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline Float select_first(std::int64_t count, Float yes, Float no) {
    return {_mm512_mask_blend_ps(Float::first(count < 0 ? 0 : count), no.v, yes.v)};
}
inline Float abs(Float a) {
    return {_mm512_abs_ps(a.v)};
}
inline Float copy_sign(Float magnitude, Float sign) {
    const __m512 bit = _mm512_set1_ps(-0.0f);
    return {_mm512_or_ps(_mm512_andnot_ps(bit, magnitude.v), _mm512_and_ps(bit, sign.v))};
}
inline float reduce_add(Float a) {
    return _mm512_reduce_add_ps(a.v);
}
inline float reduce_max(Float a) {
    return _mm512_reduce_max_ps(a.v);
}
inline float first_lane(Float a) {
    return _mm512_cvtss_f32(a.v);
}
inline Float round_to_integer(Float a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)};
}
inline Float times_power_of_two(Float a, Float n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}

#else

template <>
struct Vec<float> {
    static constexpr std::int64_t lanes = 8;
    __m256 v;

    static __m256i first(std::int64_t count) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < 8 ? count : 8)), lane);
    }
    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec broadcast(float value) { return {_mm256_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const bfloat16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
    // Whole vectors leave masks alone: AMD's processors take some twenty times as long to store with one.
    static Vec load(const float* p, std::int64_t count) {
        return count >= lanes ? load(p) : Vec{_mm256_maskload_ps(p, first(count))};
    }
    static Vec load(const bfloat16* p, std::int64_t count) {
        if (count >= lanes) return load(p);
        alignas(16) bfloat16 lane[lanes] = {};
        std::memcpy(lane, p, static_cast<std::size_t>(count) * sizeof(bfloat16));
        return load(lane);
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(bfloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
    void store(float* p, std::int64_t count) const {
        if (count >= lanes) return store(p);
        _mm256_maskstore_ps(p, first(count), v);
    }
    void store(bfloat16* p, std::int64_t count) const {
        if (count >= lanes) return store(p);
        alignas(16) bfloat16 lane[lanes];
        store(lane);
        std::memcpy(p, lane, static_cast<std::size_t>(count) * sizeof(bfloat16));
    }

    static Vec widen(__m128i bits) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))}; }
    __m128i narrow() const {
        const __m256i bits = _mm256_castps_si256(v);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
        const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    }
    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
};
using Float = Vec<float>;

inline Float fma(Float a, Float b, Float c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline Float max(Float a, Float b) {
    return {_mm256_max_ps(a.v, b.v)};
}
inline Float min(Float a, Float b) {
    return {_mm256_min_ps(a.v, b.v)};
}
inline Float sqrt(Float a) {
    return {_mm256_sqrt_ps(a.v)};
}
inline Float select_less(Float a, Float b, Float yes, Float no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
inline Float select_first(std::int64_t count, Float yes, Float no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_castsi256_ps(Float::first(count)))};
}
inline Float abs(Float a) {
    return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)};
}
inline Float copy_sign(Float magnitude, Float sign) {
    const __m256 bit = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(bit, magnitude.v), _mm256_and_ps(bit, sign.v))};
}
inline float reduce_add(Float a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(Float a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline float first_lane(Float a) {
    return _mm256_cvtss_f32(a.v);
}
inline Float round_to_integer(Float a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// In two halves, since 2^n alone leaves the range of normal numbers where the product does not.
inline Float times_power_of_two(Float a, Float n) {
    const __m256i whole = _mm256_cvtps_epi32(n.v);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const auto power = [](__m256i exponent) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    };
    return {_mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(whole, half)))};
}

#endif

// e^x with a relative error of 1.2e-7: x = n·ln 2 + r, e^r by a polynomial fitted to |r| <= ln(2) / 2 (error 4e-9).
// Overflows to infinity, underflows through the denormals to zero; e^NaN is NaN.
inline Float exp(Float x) {
    const auto c = [](float value) { return Float::broadcast(value); };
    x = max(c(-110.0f), min(c(89.0f), x));
    const Float n = round_to_integer(x * c(1.44269504f));
    Float r = fma(n, c(-0.693359375f), x);
    r = fma(n, c(2.12194440e-4f), r);
    Float q = fma(c(0.0013814471f), r, c(0.008368781f));
    q = fma(q, r, c(0.041668393f));
    q = fma(q, r, c(0.1666652f));
    q = fma(q, r, c(0.49999994f));
    return times_power_of_two(fma(q * r, r, r) + c(1.0f), n);
}

// 2^x for x <= 0 with a relative error of 8e-8, exact at 0: x = n + f, 2^f by a polynomial fitted to |f| <= 1/2 (error
// 2e-9); 1 for x > 0. The lower end of the range is as for exp.
inline Float exp2_at_most_one(Float x) {
    const auto c = [](float value) { return Float::broadcast(value); };
    x = max(c(-160.0f), min(c(0.0f), x));
    const Float n = round_to_integer(x);
    const Float f = x - n;
    Float q = fma(c(1.5353359e-4f), f, c(1.3398875e-3f));
    q = fma(q, f, c(9.618437e-3f));
    q = fma(q, f, c(5.5503324e-2f));
    q = fma(q, f, c(2.4022648e-1f));
    q = fma(q, f, c(6.9314718e-1f));
    return times_power_of_two(fma(q, f, c(1.0f)), n);
}

// tanh x: x + x³·q(x²) below 0.625 (fitted, error 5e-9), 1 - 2 / (e^2x + 1) above.
inline Float tanh(Float x) {
    const auto c = [](float value) { return Float::broadcast(value); };
    const Float z = x * x;
    Float q = fma(c(-0.0057146703f), z, c(0.020648558f));
    q = fma(q, z, c(-0.053742908f));
    q = fma(q, z, c(0.13331485f));
    q = fma(q, z, c(-0.33333284f));
    const Float small = fma(x * z, q, x);
    const Float magnitude = abs(x);
    const Float large = c(1.0f) - c(2.0f) / (exp(magnitude + magnitude) + c(1.0f));
    return select_less(magnitude, c(0.625f), small, copy_sign(large, x));
}

#endif

}  // namespace
}  // namespace pygpt::cpu

#endif
