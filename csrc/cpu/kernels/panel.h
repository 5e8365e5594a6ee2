// Panels: the operands of a matrix product, laid out as its inner loop reads them.
//
// An operand is a matrix of rows along the reduced dimension K. A panel holds `width` of its rows: for every step along
// K the `width` elements that stand there, one after the other, so that the inner loop reads memory in order. Rows that
// do not exist and places past K hold zero. An element is one number, or a pair of bfloat16 that neighbour along K (the
// form that dot-product instructions take): in 32 bits, the earlier in the lower half. Pairs are also made of float32,
// rounded on the way.
//
// Where K is contiguous in memory, squares of lanes × lanes are read along the rows and transposed in registers; where
// the rows are, vectors are copied. Either way the walk is not one that the processor foresees: what comes next, the
// rows of the next panel or the next steps, is prefetched.
#ifndef PYGPT_CPU_KERNELS_PANEL_H
#define PYGPT_CPU_KERNELS_PANEL_H

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t line_bytes = 64;

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

template <class Storage>
struct Operand {  // element (i, k) = data[i * stride + k * k_stride]; one of the strides is 1
    const Storage* data;
    std::int64_t stride;
    std::int64_t k_stride;

    const Storage* at(std::int64_t i, std::int64_t k) const { return data + i * stride + k * k_stride; }
};

#if defined(__AVX512F__)

inline void transpose(Float (&square)[16]) {
    __m512 a[16];
    __m512 b[16];
    for (int i = 0; i < 16; i += 2) {  // pairs of rows: 32-bit elements interleaved
        a[i] = _mm512_unpacklo_ps(square[i].v, square[i + 1].v);
        a[i + 1] = _mm512_unpackhi_ps(square[i].v, square[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4) {  // fours of rows: 64-bit elements interleaved
        for (int j = 0; j < 2; ++j) {
            const __m512d low = _mm512_castps_pd(a[i + j]);
            const __m512d high = _mm512_castps_pd(a[i + 2 + j]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int j = 0; j < 4; ++j) {  // b[4·i + j]: columns j, 4 + j, 8 + j, 12 + j of rows 4·i to 4·i + 3
        const __m512 even_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xdd);
        const __m512 even_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xdd);
        square[j].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        square[4 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        square[8 + j].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        square[12 + j].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}

// The bfloat16 that two vectors hold widened, paired lane by lane.
inline Float pairs_of(Float lower, Float upper) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(lower.v), 16);
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(upper.v)))};
}
inline Float lower_of_pairs(const std::uint32_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
inline Float upper_of_pairs(const std::uint32_t* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-0x10000)))};
}

#elif defined(__AVX2__)

inline void transpose(Float (&square)[8]) {
    __m256 a[8];
    __m256 b[8];
    for (int i = 0; i < 8; i += 2) {  // pairs of rows: 32-bit elements interleaved
        a[i] = _mm256_unpacklo_ps(square[i].v, square[i + 1].v);
        a[i + 1] = _mm256_unpackhi_ps(square[i].v, square[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4) {  // fours of rows: 64-bit elements interleaved
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + 2 + j], 0xee);
        }
    }
    for (int j = 0; j < 4; ++j) {  // b[4·i + j]: columns j and 4 + j of rows 4·i to 4·i + 3
        square[j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x20);
        square[4 + j].v = _mm256_permute2f128_ps(b[j], b[4 + j], 0x31);
    }
}

// The bfloat16 that two vectors hold widened, paired lane by lane.
inline Float pairs_of(Float lower, Float upper) {
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(lower.v), 16);
    return {_mm256_castsi256_ps(_mm256_or_si256(low, _mm256_castps_si256(upper.v)))};
}
inline Float lower_of_pairs(const std::uint32_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16))};
}
inline Float upper_of_pairs(const std::uint32_t* p) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000)))};
}

#else

inline Vec<float> lower_of_pairs(const std::uint32_t* p) {
    return {to_float({static_cast<std::uint16_t>(*p)})};
}
inline Vec<float> upper_of_pairs(const std::uint32_t* p) {
    return {to_float({static_cast<std::uint16_t>(*p >> 16)})};
}

#endif

// What panels are made of. `k` is how many places along K an element takes; `element` is the specification, the vector
// forms give the same for `lanes` elements: along K of one row (`places` are left in it), or at one place of `rows`
// rows. Vectors are of float32 by type; what they hold are elements.
template <class Number>
struct Single {
    using type = Number;
    static constexpr std::int64_t k = 1;

    template <class Storage>
    static Number element(const Operand<Storage>& source, std::int64_t i, std::int64_t place, std::int64_t) {
        return static_cast<Number>(read(source.at(i, place)));
    }
#if defined(__AVX2__)
    template <class Storage>
    static Float along_k(const Storage* p, std::int64_t places) {
        return places >= Float::lanes ? Float::load(p) : Float::load(p, places);
    }
    template <class Storage>
    static Float along_rows(const Storage* p, std::int64_t, std::int64_t rows, std::int64_t) {
        return rows >= Float::lanes ? Float::load(p) : Float::load(p, rows);
    }
#endif
};

struct Pair {
    using type = std::uint32_t;
    static constexpr std::int64_t k = 2;

    static bfloat16 rounded(const bfloat16* p) { return *p; }
    static bfloat16 rounded(const float* p) { return to_bfloat16(*p); }

    template <class Storage>
    static std::uint32_t element(const Operand<Storage>& source, std::int64_t i, std::int64_t place, std::int64_t K) {
        const std::uint32_t lower = rounded(source.at(i, place)).bits;
        const std::uint32_t upper = place + 1 < K ? rounded(source.at(i, place + 1)).bits : 0;
        return lower | upper << 16;
    }
#if defined(__AVX2__)
    template <class Storage>
    static Float along_k(const Storage* p, std::int64_t places) {
        if constexpr (std::is_same_v<Storage, bfloat16>) {
            if (places >= 2 * Float::lanes) return Float::load(reinterpret_cast<const float*>(p));
        }
        alignas(64) bfloat16 lane[2 * Float::lanes];
        for (std::int64_t half = 0; half < 2; ++half) {
            const std::int64_t first = half * Float::lanes;
            Single<float>::along_k(p + first, std::max<std::int64_t>(0, places - first)).store(lane + first);
        }
        return Float::load(reinterpret_cast<const float*>(lane));
    }
    template <class Storage>
    static Float along_rows(const Storage* p, std::int64_t k_stride, std::int64_t rows, std::int64_t places) {
        const auto rounded_rows = [&](const Storage* at) {
            const Float values = Single<float>::along_rows(at, k_stride, rows, places);
            return std::is_same_v<Storage, float> ? Float::widen(values.narrow()) : values;
        };
        const Float lower = rounded_rows(p);
        return pairs_of(lower, places < 2 ? Float::zero() : rounded_rows(p + k_stride));
    }
#endif
};

// Packs `steps` elements along K, from place k on, of `rows` rows from `row` on, into a panel of `width` >= rows.
// K is the operand's own; steps may reach past it. width is at most the lanes of a vector or a multiple of them.
// `whole_rows`: this call, or it and those after it, pack all of K before the next panel.
template <class Element, class Storage>
void pack(const Operand<Storage>& source, std::int64_t row, std::int64_t rows, std::int64_t k, std::int64_t K,
          std::int64_t steps, std::int64_t width, [[maybe_unused]] bool whole_rows, typename Element::type* panel) {
#if defined(__AVX2__)
    constexpr std::int64_t lanes = Float::lanes;
    // A whole vector where it ends inside the panel: lanes past `width` are overwritten by the next step.
    const auto put = [&](Float elements, std::int64_t step, std::int64_t block) {
        const std::int64_t at = step * width + block;
        auto* p = reinterpret_cast<float*>(panel + at);
        if (at + lanes <= steps * width) {
            elements.store(p);
        } else {
            elements.store(p, width - block);
        }
    };
    for (std::int64_t block = 0; block < width; block += lanes) {
        const std::int64_t present = std::clamp(rows - block, std::int64_t{0}, lanes);
        if (source.k_stride == 1) {
            // Squares that lie in the operand and, with whole vectors, in the panel: in registers throughout.
            const std::int64_t behind = std::max(std::int64_t{0}, divide_up(block + lanes, width) - 1);
            const std::int64_t whole =
                present < std::min(lanes, width) ? 0 : std::min(steps - behind, (K - k) / Element::k) / lanes * lanes;
            // Meanwhile the next panel's rows are fetched: where rows follow each other in memory, in that order.
            constexpr std::int64_t piece = lanes * Element::k;  // of a row, in a square
            const bool dense = whole > 0 && whole_rows && source.stride == K;
            const Storage* const next =
                dense ? source.at(row + width, 0) + (block / lanes * (K / piece) + k / piece) * lanes * piece
                      : source.data;
            std::int64_t step = 0;
            for (; step < whole; step += lanes) {
                const auto* p = source.at(row + block, k + step * Element::k);
                Float square[lanes];
#pragma GCC unroll 16
                for (std::int64_t i = 0; i < lanes; ++i) {
                    square[i] = i < present ? Element::along_k(p + i * source.stride, piece) : Float::zero();
                    const Storage* const ahead = dense ? next + (step + i) * piece : p + (width + i) * source.stride;
                    for (std::int64_t at = 0; at < piece;
                         at += line_bytes / static_cast<std::int64_t>(sizeof(Storage))) {
                        __builtin_prefetch(ahead + at, 0, 2);
                    }
                }
                transpose(square);
                auto* to = reinterpret_cast<float*>(panel + step * width + block);
#pragma GCC unroll 16
                for (std::int64_t i = 0; i < lanes; ++i) square[i].store(to + i * width);
            }
            for (; step < steps; step += lanes) {
                const std::int64_t place = k + step * Element::k;
                Float square[lanes];
                for (std::int64_t i = 0; i < lanes; ++i) {
                    square[i] = Float::zero();
                    if (i < present && place < K) {
                        const auto* p = source.at(row + block + i, place);
                        square[i] = Element::along_k(p, K - place);
                        __builtin_prefetch(p + width * source.stride);
                    }
                }
                transpose(square);
                for (std::int64_t i = 0; i < std::min(lanes, steps - step); ++i) put(square[i], step + i, block);
            }
        } else {
            for (std::int64_t step = 0; step < steps; ++step) {
                const std::int64_t place = k + step * Element::k;
                Float elements = Float::zero();
                if (present > 0 && place < K) {
                    const auto* p = source.at(row + block, place);
                    elements = Element::along_rows(p, source.k_stride, present, K - place);
                    for (std::int64_t i = 0; i < Element::k; ++i) {
                        __builtin_prefetch(p + (steps * Element::k + i) * source.k_stride);
                    }
                }
                put(elements, step, block);
            }
        }
    }
#else
    for (std::int64_t step = 0; step < steps; ++step) {
        const std::int64_t place = k + step * Element::k;
        for (std::int64_t i = 0; i < width; ++i) {
            panel[step * width + i] =
                i < rows && place < K ? Element::element(source, row + i, place, K) : typename Element::type{};
        }
    }
#endif
}

}  // namespace
}  // namespace pygpt::cpu

#endif
