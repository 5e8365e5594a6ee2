// Loops over the elements of a row, in vectors of the instruction set that this translation unit is compiled for.
#ifndef PYGPT_CPU_KERNELS_ROWS_H
#define PYGPT_CPU_KERNELS_ROWS_H

#include <algorithm>

#include "core/tensor_view.h"
#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

// Fetches what a loop over neighbouring memory comes to a page later, to be read or written: the processor's own
// fetching ahead ends with the page. A sum of tensors in the last level's cache takes a tenth less time. (Layer norm
// takes longer.)
constexpr std::int64_t bytes_ahead = 4096;
template <class T>
[[gnu::always_inline]] inline void read_ahead(const T* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + bytes_ahead);
}
template <class T>
[[gnu::always_inline]] inline void write_ahead(T* p) {
    __builtin_prefetch(reinterpret_cast<char*>(p) + bytes_ahead, 1);
}

// f(i, count) for each vector of a row: its first element and the number of lanes that exist there.
template <class V, class F>
void each_vector(std::int64_t width, F f) {
    std::int64_t i = 0;
    for (; i + V::lanes <= width; i += V::lanes) f(i, V::lanes);  // a constant count needs no mask
    if (i < width) f(i, width - i);
}

// store(i, count, value(i, count)) for each vector of a row, several values before any store. A load waits for a store
// that came shortly before it, if both lie at the same place of a page: where an output lies a vector behind its input,
// as torch's tensors often do, a loop that stores each vector at once takes a third longer.
template <class V, class Value, class Store>
void map_row(std::int64_t width, const Value& value, const Store& store) {
    constexpr int together = 4;
    std::int64_t i = 0;
    for (; i + together * V::lanes <= width; i += together * V::lanes) {
        decltype(value(i, V::lanes)) values[together];
        for (int v = 0; v < together; ++v) values[v] = value(i + v * V::lanes, V::lanes);
        for (int v = 0; v < together; ++v) store(i + v * V::lanes, V::lanes, values[v]);
    }
    for (; i < width; i += V::lanes) {
        const std::int64_t count = std::min(V::lanes, width - i);
        store(i, count, value(i, count));
    }
}

constexpr int chains = 4;  // accumulators side by side, so that the adder's latency is hidden

// Σ f(i, count) over the vectors from element `begin` to `end`, lane by lane.
template <class V, class F>
auto sum_run(std::int64_t begin, std::int64_t end, const F& f) {
    using Sum = decltype(f(0, 0));
    Sum sums[chains] = {Sum::zero(), Sum::zero(), Sum::zero(), Sum::zero()};
    std::int64_t i = begin;
    for (; i + chains * V::lanes <= end; i += chains * V::lanes) {
        for (int chain = 0; chain < chains; ++chain) sums[chain] = sums[chain] + f(i + chain * V::lanes, V::lanes);
    }
#pragma GCC unroll 4  // an array whose every index is a constant lies in registers
    for (int chain = 0; chain < chains; ++chain) {
        const std::int64_t count = std::min(V::lanes, end - i - chain * V::lanes);
        if (count <= 0) break;
        sums[chain] = sums[chain] + f(i + chain * V::lanes, count);
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Σ f(i, count) over the vectors of a row, lane by lane: runs of at most 64 vectors a chain, whose sums are added in
// order, so that the error does not grow with all of a wide row (of 20,000 single numbers, in the scalar set).
template <class V, class F>
auto sum_row(std::int64_t width, F f) {
    constexpr std::int64_t run = 64 * chains * V::lanes;
    auto total = sum_run<V>(0, std::min(run, width), f);
    for (std::int64_t begin = run; begin < width; begin += run) {
        total = total + sum_run<V>(begin, std::min(begin + run, width), f);
    }
    return total;
}

// Σ of `count` vectors row(0), row(1), ..., in groups of 64 whose sums are then added in order: the error grows with
// the larger of the two counts, not with their product.
template <class V, class F>
V sum_of_rows(std::int64_t count, F row) {
    constexpr std::int64_t group = 64;
    V total = V::zero();
    for (std::int64_t first = 0; first < count; first += group) {
        V sum = row(first);
        for (std::int64_t r = first + 1; r < std::min(first + group, count); ++r) sum = sum + row(r);
        total = total + sum;
    }
    return total;
}

template <class T>
T* row_of(const TensorView& tensor, std::int64_t row, std::int64_t width) {
    return static_cast<T*>(tensor.data) + row * width;
}

// f(Storage{}) for the stored type that a dtype names. The table of implementations sends float64 to the scalar set.
template <class F>
void with_storage(DType dtype, F f) {
    switch (dtype) {
        case DType::bfloat16:
            return f(bfloat16{});
        case DType::float64:
            if constexpr (this_isa == Isa::scalar) return f(double{});
            return;
        default:
            return f(float{});
    }
}

}  // namespace
}  // namespace pygpt::cpu

#endif
