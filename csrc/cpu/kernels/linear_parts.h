// What stands around the matrix products of linear and feed_forward: the epilogue of the forward, and the sums over
// rows that bias gradients are.
#ifndef PYGPT_CPU_KERNELS_LINEAR_PARTS_H
#define PYGPT_CPU_KERNELS_LINEAR_PARTS_H

#include <algorithm>
#include <cstdint>
#include <optional>

#include "core/tensor_view.h"
#include "cpu/kernels/activation.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

// `count` elements, 1 or more, as whole vectors where they fill one.
template <class V, class Storage>
V load_some(const Storage* p, std::int64_t count) {
    return count >= V::lanes ? V::load(p) : V::load(p, count);
}
template <class V, class Storage>
void store_some(V values, Storage* p, std::int64_t count) {
    if (count >= V::lanes) {
        values.store(p);
    } else {
        values.store(p, count);
    }
}

// Memory of the operands' dtype or of float32, decided at run time. Empty where a tensor is absent.
template <class Storage>
struct Either {
    using V = Vec<compute_t<Storage>>;
    void* data = nullptr;
    bool is_float32 = false;

    Either() = default;
    explicit Either(Storage* p) : data(p) {}
    explicit Either(const TensorView& tensor) : data(tensor.data), is_float32(tensor.dtype == DType::float32) {}
    explicit Either(const std::optional<TensorView>& tensor) : Either(tensor ? Either(*tensor) : Either()) {}

    explicit operator bool() const { return data != nullptr; }
    V load(std::int64_t at, std::int64_t count) const {
        return is_float32 ? load_some<V>(static_cast<const float*>(data) + at, count)
                          : load_some<V>(static_cast<const Storage*>(data) + at, count);
    }
    void store(V values, std::int64_t at, std::int64_t count) const {
        if (is_float32) {
            store_some(values, static_cast<float*>(data) + at, count);
        } else {
            store_some(values, static_cast<Storage*>(data) + at, count);
        }
    }
};

template <class Storage>
Operand<Storage> rows_of(const Storage* data, std::int64_t width) {
    return {data, width, 1};
}
template <class Storage>
Operand<Storage> columns_of(const Storage* data, std::int64_t width) {
    return {data, 1, width};
}

// f(row, column, count, sums) for every vector of a tile of sums.
template <class Number, class F>
void each_vector_of_tile(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                         const Number* sums, const F& f) {
    using V = Vec<Number>;
    for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < columns; j += V::lanes) {
            f(row + i, column + j, std::min(V::lanes, columns - j), V::load(sums + i * panel_columns + j));
        }
    }
}

// out = activation(sums + bias) + residual, for the tiles that product() hands over. out is (M, N).
template <class Storage>
struct Epilogue {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    std::int64_t N;
    Either<Storage> bias;
    Activation activation;
    Either<Storage> residual;
    Either<Storage> out;
    Storage* pre_activation;  // sums + bias, where the backward needs it

    void operator()(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                    const Number* sums) const {
        each_vector_of_tile(row, rows, column, columns, sums,
                            [this](std::int64_t i, std::int64_t j, std::int64_t count, V value) {
                                const std::int64_t at = i * N + j;
                                if (bias) value = value + bias.load(j, count);
                                if (pre_activation) store_some(value, pre_activation + at, count);
                                value = activate(activation, value);
                                if (residual) value = value + residual.load(at, count);
                                out.store(value, at, count);
                            });
    }
};

// Calls value(at, count) for every vector of a matrix (M, N), in tasks of rows, and sums what it returns over the rows:
// in groups of `rows_per_sum`, each in order, then the groups in order. No sums are made where `sums` is empty.
template <class Storage, class F>
void sum_rows(std::int64_t M, std::int64_t N, const F& value, const Either<Storage>& sums) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    constexpr std::int64_t rows_per_sum = 64;
    const std::int64_t groups = divide_up(M, rows_per_sum);
    const std::int64_t width = divide_up(N, V::lanes) * V::lanes;
    const Scratch scratch(sums ? static_cast<std::size_t>(groups * width) * sizeof(Number) : 0);
    auto* const partial = static_cast<Number*>(scratch.data());  // (groups, width)
    parallel_for(groups, [&](std::int64_t group) {
        Number* const sum = partial + group * width;
        const std::int64_t first = group * rows_per_sum;
        for (std::int64_t row = first; row < std::min(first + rows_per_sum, M); ++row) {
            each_vector<V>(N, [&](std::int64_t j, std::int64_t count) {
                const V v = value(row * N + j, count);
                if (sums) (row == first ? v : V::load(sum + j) + v).store(sum + j);
            });
        }
    });
    if (!sums) return;
    constexpr std::int64_t columns_per_task = 1024;
    parallel_for(divide_up(N, columns_per_task), [&](std::int64_t task) {
        const std::int64_t first = task * columns_per_task;
        each_vector<V>(std::min(columns_per_task, N - first), [&](std::int64_t j, std::int64_t count) {
            V total = V::zero();
            for (std::int64_t group = 0; group < groups; ++group) {
                total = total + V::load(partial + group * width + first + j);
            }
            sums.store(total, first + j, count);
        });
    });
}

}  // namespace
}  // namespace pygpt::cpu

#endif
