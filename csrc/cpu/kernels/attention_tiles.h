// What attention's forward and backward are made of: tiles of rows and keys, their products, and the scores.
//
// A row is one query of one query head; the rows of a kv head are its queries, and of each query the heads that read
// it: row = (query - first query) · heads + head. A key tile is `key_tile` keys, counted from the sequence's first key;
// its size is part of the order of summation. How rows are cut into tiles is not: every element of every product is
// summed in one accumulator, step by step, and a hidden key adds exactly zero.
//
// Products are left (rows × steps, elements broadcast) times right (steps × columns, vectors), in register tiles of
// `group_rows` × `group_vectors` accumulators. Left and right lie packed in the cache: in the type of computation, or,
// where the processor multiplies bfloat16, as pairs of it, two neighbours of the reduced dimension a step.
#ifndef PYGPT_CPU_KERNELS_ATTENTION_TILES_H
#define PYGPT_CPU_KERNELS_ATTENTION_TILES_H

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/philox.h"
#include "cpu/kernels.h"
#include "cpu/kernels/keep.h"
#include "cpu/kernels/panel.h"
#include "cpu/kernels/simd.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

using attention::Problem;
using attention::Sequence;
using attention::Span;

constexpr std::int64_t key_tile = 64;
constexpr int group_rows = Vec<float>::lanes == 1 ? 4 : 6;
constexpr int group_vectors = Vec<float>::lanes == 8 ? 2 : 4;  // of 32, 16 (AVX2) or 16 narrow (scalar) registers
constexpr std::int64_t row_tile = 8 * group_rows;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

template <class Number>
constexpr Number infinity = std::numeric_limits<Number>::infinity();
template <class Number>
constexpr Number log2_e = static_cast<Number>(1.442695040888963407);
constexpr double ln_2 = 0.693147180559945309;

// Hands out parts of a block of memory, each aligned to 64 bytes; without memory it only counts.
class Divider {
  public:
    explicit Divider(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}
    template <class T>
    T* take(std::int64_t count) {
        T* part = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
        used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
        return part;
    }
    std::size_t used() const { return used_; }

  private:
    std::byte* memory_;
    std::size_t used_ = 0;
};

// ---- products ----

enum class To { set, add, rescale };  // what the sums are added to: nothing, out, or out · rescale[row]

// So many steps, counted from step 0, are summed in one accumulator, in order, before the sum goes to out.
constexpr std::int64_t steps_in_a_sum = Vec<float>::lanes == 1 ? 16 : 32;

// A factor of a step: one number, or two neighbours of the reduced dimension.
template <class Number>
struct Factor {
    using Sum = Vec<Number>;
    static constexpr std::int64_t size = 1;
    static Sum broadcast(const Number* p) { return Sum::broadcast(*p); }
    static Sum load(const Number* p) { return Sum::load(p); }
    static Sum of(Sum factors) { return factors; }
    static Sum multiply_add(Sum a, Sum b, Sum sum) { return fma(a, b, sum); }
};

struct Bfloat16Pair {
    bfloat16 first, second;
};

#if defined(__AVX512BF16__)

template <>
struct Factor<Bfloat16Pair> {
    using Sum = Vec<float>;
    static constexpr std::int64_t size = 2;
    static __m512bh broadcast(const Bfloat16Pair* p) {
        int bits;
        std::memcpy(&bits, p, sizeof bits);
        return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
    }
    static __m512bh load(const Bfloat16Pair* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
    static __m512bh of(Sum factors) { return reinterpret_cast<__m512bh>(factors.v); }
    static Sum multiply_add(__m512bh a, __m512bh b, Sum sum) { return {_mm512_dpbf16_ps(sum.v, a, b)}; }
};

template <class Storage>
using factor_t = std::conditional_t<std::is_same_v<Storage, bfloat16>, Bfloat16Pair, compute_t<Storage>>;

#else

template <class Storage>
using factor_t = compute_t<Storage>;

#endif

// Steps that so many numbers of the reduced dimension take.
template <class Storage>
constexpr std::int64_t steps_of(std::int64_t numbers) {
    return ceil_div(numbers, Factor<factor_t<Storage>>::size);
}
// For vectors of keys, whose ends are even.
template <class Storage>
constexpr Span steps_of(Span numbers) {
    return {numbers.begin / Factor<factor_t<Storage>>::size, steps_of<Storage>(numbers.end)};
}

template <class T>
struct Left {
    const T* data;
    std::int64_t row_stride, step_stride;
};
template <class T>
struct Right {
    const T* data;
    std::int64_t step_stride;

    Right from(std::int64_t step, std::int64_t column) const {
        return {data + step * step_stride + column, step_stride};
    }
    auto load(std::int64_t step, std::int64_t column) const {
        return Factor<T>::load(data + step * step_stride + column);
    }
};
template <class Number>
struct Out {
    Number* data;
    std::int64_t row_stride;
};

// out[rows × vectors] (+)= left[rows × steps] · right[steps × vectors]
template <class T, class R, class Number, To to, int rows, int vectors>
void multiply_group(Left<T> left, R right, std::int64_t steps, Out<Number> out, const Number* rescale) {
    using V = Vec<Number>;
    using F = Factor<T>;
    V sums[rows][vectors];  // in registers, which takes loops that are unrolled early
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < vectors; ++n) sums[r][n] = V::zero();
    }
    for (std::int64_t step = 0; step < steps; ++step) {
        decltype(right.load(0, 0)) columns[vectors];
#pragma GCC unroll 16
        for (int n = 0; n < vectors; ++n) columns[n] = right.load(step, n * V::lanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
            const auto element = F::broadcast(left.data + r * left.row_stride + step * left.step_stride);
#pragma GCC unroll 16
            for (int n = 0; n < vectors; ++n) sums[r][n] = F::multiply_add(element, columns[n], sums[r][n]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < vectors; ++n) {
            Number* at = out.data + r * out.row_stride + n * V::lanes;
            V sum = sums[r][n];
            if constexpr (to == To::add) sum = V::load(at) + sum;
            if constexpr (to == To::rescale) sum = fma(V::load(at), V::broadcast(rescale[r]), sum);
            sum.store(at);
        }
    }
}

template <class T, class R, class Number>
using Multiply = void (*)(Left<T>, R, std::int64_t, Out<Number>, const Number*);

template <class T, class R, class Number, To to, int... sizes>
constexpr std::array<Multiply<T, R, Number>, sizeof...(sizes)> multiply_table(std::integer_sequence<int, sizes...>) {
    return {multiply_group<T, R, Number, to, sizes / group_vectors + 1, sizes % group_vectors + 1>...};
}

// Left and right begin with step 0; only those in `steps` are done.
template <To to, class T, class Number, class R = Right<T>>
void multiply(std::int64_t rows, std::int64_t vectors, Span steps, Left<T> left, R right, Out<Number> out,
              const Number* rescale = nullptr) {
    static constexpr auto table =
        multiply_table<T, R, Number, to>(std::make_integer_sequence<int, group_rows * group_vectors>());
    constexpr std::int64_t lanes = Vec<Number>::lanes;
    const std::int64_t end = std::min(steps.end, (steps.begin / steps_in_a_sum + 1) * steps_in_a_sum);
    for (std::int64_t n = 0; n < vectors; n += group_vectors) {
        const std::int64_t columns = std::min<std::int64_t>(vectors - n, group_vectors);
        for (std::int64_t r = 0; r < rows; r += group_rows) {
            const std::int64_t size = (std::min<std::int64_t>(rows - r, group_rows) - 1) * group_vectors + columns - 1;
            table[static_cast<std::size_t>(size)](
                {left.data + r * left.row_stride + steps.begin * left.step_stride, left.row_stride, left.step_stride},
                right.from(steps.begin, n * lanes), end - steps.begin,
                {out.data + r * out.row_stride + n * lanes, out.row_stride}, rescale + r);
        }
    }
    if (end < steps.end) multiply<To::add>(rows, vectors, {end, steps.end}, left, right, out);
}

// a · b, summed as in a product
template <class T>
auto dot(const T* a, const T* b, std::int64_t steps) {
    using F = Factor<T>;
    using V = typename F::Sum;
    V total = V::zero();
    for (std::int64_t begin = 0; begin < steps; begin += steps_in_a_sum) {
        V sum = V::zero();
        for (std::int64_t i = begin; i < std::min(begin + steps_in_a_sum, steps); ++i) {
            sum = F::multiply_add(F::broadcast(a + i), F::broadcast(b + i), sum);
        }
        total = total + sum;
    }
    return first_lane(total);
}

// ---- rows and keys ----

// KeyRange's function of that name, inlined wherever it is called from: objects of an instruction set share no
// functions.
[[gnu::flatten]] inline Sequence sequence_of(const Problem& p, std::int64_t index) {
    return p.keys.sequence(index);
}

// Query heads of one kv head in one sequence: where their rows and keys lie, and what they may see.
template <class Storage>
struct Head {
    const Problem& p;
    Sequence sequence;
    std::int64_t index;              // of the sequence
    std::int64_t first_head, heads;  // query heads
    std::int64_t kv_head;

    Head(const Problem& problem, std::int64_t sequence_index, std::int64_t first, std::int64_t count)
        : p(problem),
          sequence(sequence_of(problem, sequence_index)),
          index(sequence_index),
          first_head(first),
          heads(count),
          kv_head(first / (problem.H / problem.G)) {}

    // All query heads of a kv head.
    static Head all_of(const Problem& problem, std::int64_t sequence_index, std::int64_t kv) {
        const std::int64_t heads = problem.H / problem.G;
        return {problem, sequence_index, kv * heads, heads};
    }

    std::int64_t rows() const { return sequence.queries.size() * heads; }
    std::int64_t query(std::int64_t row) const { return sequence.queries.begin + row / heads; }
    std::int64_t head(std::int64_t row) const { return first_head + row % heads; }
    Span keys(std::int64_t row) const { return p.keys.keys(sequence, query(row)); }

    // The row or key in a tensor of (batch, time, heads, ...).
    template <class T = Storage>
    T* row_of(const TensorView& tensor, std::int64_t row) const {
        return at<T>(tensor, query(row), head(row));
    }
    Storage* key_of(const TensorView& tensor, std::int64_t key) const { return at<Storage>(tensor, key, kv_head); }
    // The row in a tensor of (batch, heads, time, ...).
    template <class T>
    T* row_of_transposed(const TensorView& tensor, std::int64_t row) const {
        return static_cast<T*>(tensor.data) + sequence.batch * tensor.strides[0] + head(row) * tensor.strides[1] +
               query(row) * tensor.strides[2];
    }

  private:
    template <class T>
    T* at(const TensorView& tensor, std::int64_t time, std::int64_t in_head) const {
        return static_cast<T*>(tensor.data) + sequence.batch * tensor.strides[0] + time * tensor.strides[1] +
               in_head * tensor.strides[2];
    }
};

// Fetches a row into L2, that will be read or written soon. Rows of one head lie far apart, so the processor does not
// foresee them. (Inlined: GCC drops calls of functions that do nothing but prefetch, as having no effect.)
enum class Use { read, write };
template <Use use = Use::read, class Storage>
[[gnu::always_inline]] inline void prefetch_row(const Storage* row, std::int64_t width) {
    for (std::int64_t i = 0; i < width; i += line_bytes / static_cast<std::int64_t>(sizeof(Storage))) {
        __builtin_prefetch(row + i, use == Use::write, 2);
    }
}
constexpr std::int64_t rows_ahead = 8;  // where rows are read one after the other

// Part `index` of `parts` of the keys from `base` in one key tile, of k and v: between the parts something is computed.
template <class Storage>
[[gnu::always_inline]] inline void prefetch_keys(const Head<Storage>& head, std::int64_t base, std::int64_t end,
                                                 std::int64_t index, std::int64_t parts) {
    const std::int64_t count = ceil_div(key_tile, parts);
    const std::int64_t first = base + index * count;
    for (std::int64_t key = first; key < std::min({first + count, base + key_tile, end}); ++key) {
        prefetch_row(head.key_of(head.p.k, key), head.p.D);
        prefetch_row(head.key_of(head.p.v, key), head.p.D);
    }
}

inline Span unite(Span a, Span b) {
    if (a.empty()) return b;
    if (b.empty()) return a;
    return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}
inline Span unite(const Span* spans, std::int64_t count) {
    Span out{0, 0};
    for (std::int64_t i = 0; i < count; ++i) out = unite(out, spans[i]);
    return out;
}
inline Span intersect(Span a, Span b) {
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// The part of a span that lies in the key tile from `base`, relative to it.
inline Span in_tile(Span span, std::int64_t base) {
    return intersect({span.begin - base, span.end - base}, {0, key_tile});
}
// The same in whole vectors of lanes.
template <class V>
Span whole_vectors(Span span) {
    if (span.empty()) return {0, 0};
    return {span.begin / V::lanes * V::lanes, ceil_div(span.end, V::lanes) * V::lanes};
}

// f(j) for the vectors of a span of whole ones: unrolled where it is all of a tile, as most are.
template <class V, class F>
[[gnu::always_inline]] inline void each_vector_of(Span span, const F& f) {
    if (span.size() == key_tile) {
#pragma GCC unroll 4
        for (std::int64_t j = 0; j < key_tile; j += V::lanes) f(j);
    } else {
        for (std::int64_t j = span.begin; j < span.end; j += V::lanes) f(j);
    }
}

// out[(row, width)] = the values, zeros after them up to `stride`
template <class Storage>
void pack_row(const Storage* from, std::int64_t width, compute_t<Storage>* out, std::int64_t stride) {
    using V = Vec<compute_t<Storage>>;
    for (std::int64_t i = 0; i < stride; i += V::lanes) {
        V::load(from + i, std::clamp<std::int64_t>(width - i, 0, V::lanes)).store(out + i);
    }
}

// The key tile from `base` of k or v as (key_tile, stride); keys outside `seen` are zeros, whatever memory holds. As in
// the following, only whole vectors of keys in which some are seen are packed: a step of decoding often has but a few.
template <class Storage>
void pack_keys(const Head<Storage>& head, const TensorView& tensor, std::int64_t base, Span seen,
               compute_t<Storage>* out, std::int64_t stride) {
    const Span packed = whole_vectors<Vec<compute_t<Storage>>>(seen);
    for (std::int64_t key = packed.begin; key < packed.end; ++key) {
        if (key >= seen.begin && key < seen.end) {
            pack_row(head.key_of(tensor, base + key), head.p.D, out + key * stride, stride);
        } else {
            std::fill_n(out + key * stride, stride, compute_t<Storage>(0));
        }
    }
}

// Factors along a row: lane i holds that of step `step` + i, zeros past `width` numbers, or all lanes within it.
template <class Storage>
auto load_factors(const Storage* row, std::int64_t step) {
    return Vec<compute_t<Storage>>::load(row + step);
}
template <class Storage>
auto load_factors(const Storage* row, std::int64_t width, std::int64_t step) {
    using V = Vec<compute_t<Storage>>;
    return V::load(row + step, std::min(V::lanes, width - step));
}
template <class Number>
void store_factors(Vec<Number> factors, Number* out, std::int64_t count) {
    factors.store(out, count);
}
// The key tile as the right factor of a product over keys: (key_tile, stride), or of pairs (key_tile / 2, stride).
template <class Storage>
void pack_key_factors(const Head<Storage>& head, const TensorView& tensor, std::int64_t base, Span seen,
                      compute_t<Storage>* out, std::int64_t stride) {
    pack_keys(head, tensor, base, seen, out, stride);
}
// A row of left factors of a product over the keys of the span: weight(j), in order, for its vectors.
template <class Number, class Weight>
[[gnu::always_inline]] inline void store_over_keys(Span span, Number* out, const Weight& weight) {
    each_vector_of<Vec<Number>>(span, [&](std::int64_t j) { weight(j).store(out + j); });
}
// Keys where they lie, as the right factor of a product over keys: for few rows, which packing would cost more than the
// product. They are all seen, and D is a multiple of a vector.
template <class Storage>
struct KeyRows {
    const Storage* data;
    std::int64_t stride;

    KeyRows from(std::int64_t step, std::int64_t column) const { return {data + step * stride + column, stride}; }
    auto load(std::int64_t step, std::int64_t column) const {
        return Vec<compute_t<Storage>>::load(data + step * stride + column);
    }
};
// Rows of (row_tile, key_tile), as they are computed, as the left factor of a product over the keys of the span: they
// themselves, or, in `room` for as many rows, pairs in as many columns.
template <class Storage, class Number>
const Number* over_keys(const Number* rows, std::int64_t, Span, Number*) {
    return rows;
}
// The same of a product over rows: they themselves, or pairs in (row_tile / 2, key_tile).
template <class Storage, class Number>
const Number* over_rows(const Number* tile, Span, Span, Number*) {
    return tile;
}

#if defined(__AVX512BF16__)
inline Vec<float> load_factors(const bfloat16* row, std::int64_t step) {
    return {_mm512_castsi512_ps(_mm512_loadu_si512(row + 2 * step))};
}
inline Vec<float> load_factors(const bfloat16* row, std::int64_t width, std::int64_t step) {
    const std::int64_t count = std::clamp<std::int64_t>(width - 2 * step, 0, 32);
    const auto present = static_cast<__mmask32>((std::uint64_t{1} << count) - 1);
    return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(present, row + 2 * step))};
}
inline void store_factors(Vec<float> factors, Bfloat16Pair* out, std::int64_t count) {
    factors.store(reinterpret_cast<float*>(out), count);
}
template <>
struct KeyRows<bfloat16> {
    const bfloat16* data;
    std::int64_t stride;

    KeyRows from(std::int64_t step, std::int64_t column) const { return {data + 2 * step * stride + column, stride}; }
    __m512bh load(std::int64_t step, std::int64_t column) const {
        const bfloat16* first = data + 2 * step * stride + column;
        const auto widen = [](const bfloat16* p) {
            return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        };
        const __m512i pairs = _mm512_or_si512(widen(first), _mm512_slli_epi32(widen(first + stride), 16));
        return reinterpret_cast<__m512bh>(pairs);
    }
};
// out[(pair, i)] = elements i of the rows 2·pair and 2·pair + 1 of `count`, zeros for a row that is null and past
// `width`. Several rows are loaded before any store: a load waits for a store that came shortly before it, if both lie
// at the same place of a page.
template <class RowOf>
void pair_rows(std::int64_t count, const RowOf& row_of, std::int64_t width, Bfloat16Pair* out, std::int64_t stride) {
    constexpr std::int64_t pairs = 8;
    for (std::int64_t first = 0; first < count; first += 2 * pairs) {
        const bfloat16* rows[2 * pairs];
        for (std::int64_t r = 0; r < 2 * pairs; ++r) rows[r] = first + r < count ? row_of(first + r) : nullptr;
        for (std::int64_t i = 0; i < stride; i += 16) {
            const std::int64_t columns = std::clamp<std::int64_t>(width - i, 0, 16);
            const auto present = static_cast<__mmask16>((1u << columns) - 1);
            const auto load = [&](const bfloat16* row) {
                const __m256i values = row ? _mm256_maskz_loadu_epi16(present, row + i) : _mm256_setzero_si256();
                return _mm512_cvtepu16_epi32(values);
            };
            __m512i both[pairs];
#pragma GCC unroll 8
            for (std::int64_t pair = 0; pair < pairs; ++pair) {
                both[pair] = _mm512_or_si512(load(rows[2 * pair]), _mm512_slli_epi32(load(rows[2 * pair + 1]), 16));
            }
            for (std::int64_t pair = 0; pair < std::min(pairs, (count - first + 1) / 2); ++pair) {
                _mm512_storeu_si512(out + (first / 2 + pair) * stride + i, both[pair]);
            }
        }
    }
}
inline void pack_key_factors(const Head<bfloat16>& head, const TensorView& tensor, std::int64_t base, Span seen,
                             Bfloat16Pair* out, std::int64_t stride) {
    const Span packed = whole_vectors<Vec<float>>(seen);
    const auto row = [&](std::int64_t i) {
        const std::int64_t key = packed.begin + i;
        return key >= seen.begin && key < seen.end ? head.key_of(tensor, base + key) : nullptr;
    };
    pair_rows(packed.size(), row, head.p.D, out + packed.begin / 2 * stride, stride);
}
// Two vectors rounded, those of `first` in the lower half. Denormal numbers become zero, which they are to the product.
inline __m512i rounded_halves(Vec<float> first, Vec<float> last) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(last.v, first.v));
}
template <class Weight>
[[gnu::always_inline]] inline void store_over_keys(Span span, Bfloat16Pair* out, const Weight& weight) {
    const auto store = [&](std::int64_t j, Vec<float> first, Vec<float> last) {
        _mm512_storeu_si512(out + j / 2, rounded_halves(first, last));
    };
    if (span.size() == key_tile) {
#pragma GCC unroll 2
        for (std::int64_t j = 0; j < key_tile; j += 32) {
            const Vec<float> first = weight(j);
            store(j, first, weight(j + 16));
        }
    } else {  // whole pairs of vectors: what lies beside the span in the tile is not read by the product
        for (std::int64_t j = span.begin / 32 * 32; j < span.end; j += 32) {
            const Vec<float> first = j < span.begin ? Vec<float>::zero() : weight(j);
            store(j, first, j + 16 < span.end ? weight(j + 16) : Vec<float>::zero());
        }
    }
}
template <class Storage>
const Bfloat16Pair* over_keys(const float* rows, std::int64_t count, Span span, Bfloat16Pair* room) {
    for (std::int64_t row = 0; row < count; ++row) {
        const float* from = rows + row * key_tile;
        auto* to = reinterpret_cast<bfloat16*>(room + row * key_tile);
        // Whole pairs of vectors: what lies beside the span in the tile is not read by the product.
        for (std::int64_t j = span.begin / 32 * 32; j < span.end; j += 32) {
            _mm512_storeu_si512(to + j, rounded_halves(Vec<float>::load(from + j), Vec<float>::load(from + j + 16)));
        }
    }
    return room;
}
template <class Storage>
const Bfloat16Pair* over_rows(const float* tile, Span rows, Span span, Bfloat16Pair* room) {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (std::int64_t row = rows.begin; row < rows.end; row += 2) {
        const float* from = tile + row * key_tile;
        Bfloat16Pair* to = room + row / 2 * key_tile;
        for (std::int64_t j = span.begin; j < span.end; j += 16) {
            const Vec<float> last = row + 1 < rows.end ? Vec<float>::load(from + key_tile + j) : Vec<float>::zero();
            const __m512i halves = rounded_halves(Vec<float>::load(from + j), last);
            _mm512_storeu_si512(to + j, _mm512_permutexvar_epi16(pairs, halves));
        }
    }
    return room;
}
#endif

// A row as the left factor of a product over D: (steps,)
template <class Storage>
void pack_factors(const Storage* row, std::int64_t width, factor_t<Storage>* out) {
    constexpr std::int64_t lanes = Vec<compute_t<Storage>>::lanes;
    const std::int64_t steps = steps_of<Storage>(width);
    for (std::int64_t i = 0; i < steps; i += lanes) store_factors(load_factors(row, width, i), out + i, steps - i);
}

// As many keys from `first` on as a vector has lanes, turned: vector i holds the keys' factors of step `step` + i. Keys
// outside `seen`, counted from `first`, are zeros.
template <class Storage, class V>
[[gnu::always_inline]] inline void turn_keys(const Head<Storage>& head, const TensorView& tensor, std::int64_t first,
                                             Span seen, std::int64_t step, V (&square)[V::lanes]) {
    const Storage* row = head.key_of(tensor, first);
    const std::int64_t stride = tensor.strides[1];
    if (seen.begin <= 0 && seen.end >= V::lanes && (step + V::lanes) * Factor<factor_t<Storage>>::size <= head.p.D) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < V::lanes; ++i) square[i] = load_factors(row + i * stride, step);
    } else {
        for (std::int64_t i = 0; i < V::lanes; ++i) {
            const bool hidden = i < seen.begin || i >= seen.end;
            square[i] = hidden ? V::zero() : load_factors(row + i * stride, head.p.D, step);
        }
    }
    if constexpr (V::lanes > 1) transpose(square);
}

// The key tile as the right factor of a product over D: (D, key_tile), or of pairs (D / 2, key_tile).
template <class Storage>
void pack_keys_transposed(const Head<Storage>& head, const TensorView& tensor, std::int64_t base, Span seen,
                          factor_t<Storage>* out) {
    using V = Vec<compute_t<Storage>>;
    const std::int64_t steps = steps_of<Storage>(head.p.D);
    const Span packed = whole_vectors<V>(seen);
    for (std::int64_t key = packed.begin; key < packed.end; key += V::lanes) {
        for (std::int64_t step = 0; step < steps; step += V::lanes) {
            V square[V::lanes];
            turn_keys(head, tensor, base + key, {seen.begin - key, seen.end - key}, step, square);
            for (std::int64_t i = 0; i < std::min(V::lanes, steps - step); ++i) {
                store_factors(square[i], out + (step + i) * key_tile + key, V::lanes);
            }
        }
    }
}

// scores (rows, key_tile) = q (rows, steps) · kᵀ for few rows and the keys of the tile from `base`, whole vectors of
// which some are seen: they are turned in registers, not packed. Summed as in a product.
template <class Storage, int rows>
void multiply_turned_keys(const Head<Storage>& head, std::int64_t base, Span seen, const factor_t<Storage>* q,
                          compute_t<Storage>* scores) {
    using F = Factor<factor_t<Storage>>;
    using V = Vec<compute_t<Storage>>;
    const std::int64_t steps = steps_of<Storage>(head.p.D);
    const Span keys = whole_vectors<V>(seen);
    for (std::int64_t key = keys.begin; key < keys.end; key += V::lanes) {
        V totals[rows];
        for (std::int64_t first = 0; first < steps; first += steps_in_a_sum) {
            const std::int64_t end = std::min(first + steps_in_a_sum, steps);
            V sums[rows];
            for (V& sum : sums) sum = V::zero();
            for (std::int64_t step = first; step < end; step += V::lanes) {
                V square[V::lanes];
                turn_keys(head, head.p.k, base + key, {seen.begin - key, seen.end - key}, step, square);
                const auto add = [&](std::int64_t i) {
                    for (int r = 0; r < rows; ++r) {
                        sums[r] = F::multiply_add(F::broadcast(q + r * steps + step + i), F::of(square[i]), sums[r]);
                    }
                };
                if (step + V::lanes <= end) {
#pragma GCC unroll 16
                    for (std::int64_t i = 0; i < V::lanes; ++i) add(i);
                } else {
                    for (std::int64_t i = 0; i < end - step; ++i) add(i);
                }
            }
            for (int r = 0; r < rows; ++r) totals[r] = first == 0 ? sums[r] : totals[r] + sums[r];
        }
        for (int r = 0; r < rows; ++r) totals[r].store(scores + r * key_tile + key);
    }
}

// ---- scores ----

// Vectors of a bias (float32 or the tensors' dtype) or of a mask, at any stride between keys.
template <class V, class T>
V load_strided(const T* from, std::int64_t stride, std::int64_t count) {
    if (stride == 1) return V::load(from, count);
    T lane[V::lanes] = {};
    for (std::int64_t i = 0; i < count; ++i) lane[i] = from[i * stride];
    return V::load(lane);
}

// What stands between a product q·k and a weight, the same for all rows.
template <class Storage>
class Scores {
  public:
    using Number = compute_t<Storage>;
    using V = Vec<Number>;

    explicit Scores(const Problem& p)
        : p_(p),
          scale_(static_cast<Number>(p.scale)),
          scale_log2_(static_cast<Number>(p.scale * 1.442695040888963407)),
          late_(!p.softcap && !p.bias && scale_log2_ > 0 && scale_log2_ < infinity<Number>),
          cap_(static_cast<Number>(p.softcap.value_or(0))),
          drop_below_(philox::drop_below(p.dropout < 1 ? p.dropout : 0)),
          kept_(p.dropout < 1 ? static_cast<Number>(1 / (1 - p.dropout)) : Number(0)) {}

    // What a finished score must be multiplied by to be in units of log 2: where nothing comes between a product and
    // its weight but a positive scale, that is left to a multiply-add in which the maximum is subtracted as well.
    Number unit() const { return late_ ? scale_log2_ : Number(1); }

    // Turns products of a row with the keys base + span into scores, but for unit(); hidden ones are -inf. Gives, lane
    // by lane, their maximum. With a softcap, `slope` gets the derivative of the capped score by the uncapped one.
    [[gnu::always_inline]] V finish(const Head<Storage>& head, std::int64_t row, Span keys, std::int64_t base,
                                    Span span, Number* scores, Number* slope) const {
        const Span seen = in_tile(keys, base);
        if (late_ && !p_.mask && seen.begin <= span.begin && seen.end >= span.end) {
            V most = V::broadcast(-infinity<Number>);
            each_vector_of<V>(span, [&](std::int64_t j) { most = max(most, V::load(scores + j)); });
            return most;
        }
        return finish_each(head, row, seen, base, span, scores, slope);
    }

    bool drops() const { return p_.dropout > 0; }

    // For the keys of the tile from `base`: 0 where the weight is dropped, else 1 / (1 - dropout).
    void dropout(const Head<Storage>& head, std::int64_t row, std::int64_t base, Number* factors) const {
        const auto* seeds = static_cast<const std::int64_t*>(p_.seed->data);
        const std::int64_t seed =
            p_.seed->dimensions == 0
                ? static_cast<std::int64_t>(static_cast<std::uint64_t>(*seeds) + static_cast<std::uint64_t>(head.index))
                : seeds[head.index];
        const auto position = static_cast<std::uint32_t>(p_.keys.position(head.sequence, head.query(row)));
        const auto first = static_cast<std::uint32_t>(
            philox::place(static_cast<std::uint64_t>(base - head.sequence.keys.begin)).block);
        static_assert(key_tile == philox::elements_per_group);
        keep_group(static_cast<std::uint64_t>(seed),
                   {{first, position, static_cast<std::uint32_t>(head.head(row)),
                     static_cast<std::uint32_t>(philox::Site::attention)}},
                   drop_below_, kept_, factors);
    }

  private:
    V finish_each(const Head<Storage>& head, std::int64_t row, Span seen, std::int64_t base, Span span, Number* scores,
                  Number* slope) const {
        V most = V::broadcast(-infinity<Number>);
        const V hidden = V::broadcast(-infinity<Number>);
        for (std::int64_t j = span.begin; j < span.end; j += V::lanes) {
            const std::int64_t count = std::clamp<std::int64_t>(seen.end - j, 0, V::lanes);  // no memory beyond these
            V x = V::load(scores + j);
            if (p_.softcap) {
                const V t = tanh(x * V::broadcast(scale_ / cap_));
                if (slope) (V::broadcast(1) - t * t).store(slope + j);
                x = t * V::broadcast(cap_ * log2_e<Number>);
            } else if (!late_) {
                x = x * V::broadcast(scale_log2_);
            }
            if (p_.bias) x = fma(bias(head, row, base + j, count), V::broadcast(log2_e<Number>), x);
            if (p_.mask) x = select_less(V::zero(), mask(head, row, base + j, count), x, hidden);
            x = select_first(count, x, hidden);
            x = select_first(seen.begin - j, hidden, x);
            x.store(scores + j);
            most = max(most, x);
        }
        return most;
    }

    V bias(const Head<Storage>& head, std::int64_t row, std::int64_t key, std::int64_t count) const {
        const V value = p_.bias->dtype == DType::float32 ? bias_as<const float>(head, row, key, count)
                                                         : bias_as<const Storage>(head, row, key, count);
        // The lowest finite number, which some write for "hidden", stays finite when it is turned into units of log 2:
        // a row of nothing else is a plain mean, not a row that sees nothing.
        constexpr Number largest = std::numeric_limits<Number>::max();
        const V bounded = max(V::broadcast(-largest / 2), min(V::broadcast(largest / 2), value));
        return select_less(value, V::broadcast(-largest), value, bounded);
    }
    template <class T>
    V bias_as(const Head<Storage>& head, std::int64_t row, std::int64_t key, std::int64_t count) const {
        const std::int64_t stride = p_.bias->strides[3];
        return load_strided<V>(head.template row_of_transposed<T>(*p_.bias, row) + key * stride, stride, count);
    }

    // 1 where the mask is true, else 0.
    V mask(const Head<Storage>& head, std::int64_t row, std::int64_t key, std::int64_t count) const {
        const std::int64_t stride = p_.mask->strides[3];
        const auto* from = head.template row_of_transposed<const std::uint8_t>(*p_.mask, row) + key * stride;
        Number lane[V::lanes] = {};
        for (std::int64_t i = 0; i < count; ++i) lane[i] = from[i * stride];
        return V::load(lane);
    }

    const Problem& p_;
    Number scale_, scale_log2_;
    bool late_;
    Number cap_;
    std::uint32_t drop_below_;
    Number kept_;
};

// A row's log-sum-exp in units of log 2, in two parts, so that it is exact to the bits that were saved.
template <class Number>
struct Lse {
    Number high, low;

    explicit Lse(Number saved) {  // -inf: nothing is seen, and every score is -inf too
        const double log2 = saved == -infinity<Number> ? 0 : saved / ln_2;
        high = static_cast<Number>(log2);
        low = static_cast<Number>(log2 - high);
    }
    // At most 1: of large scores (a row of nothing but -1e30, say) what was saved is rounded by more than exp2 could
    // bear.
    Vec<Number> weight(Vec<Number> score, Number unit) const {
        using V = Vec<Number>;
        return exp2_at_most_one(fma(score, V::broadcast(unit), V::broadcast(-high)) - V::broadcast(low));
    }
};

// p where it is not exactly zero, else zero: what a hidden key's memory holds must not matter.
template <class V>
V where_seen(V weight, V value) {
    constexpr auto least = std::numeric_limits<decltype(reduce_add(weight))>::denorm_min();
    return select_less(weight, V::broadcast(least), V::zero(), value);
}

// Calls f with a value of the stored type; float64 has scalar kernels only.
template <class F>
void with_storage(DType dtype, F f) {
    if (dtype == DType::bfloat16) return f(bfloat16{});
    if constexpr (this_isa == Isa::scalar) {
        if (dtype == DType::float64) return f(double{});
    }
    f(float{});
}

}  // namespace
}  // namespace pygpt::cpu

#endif
