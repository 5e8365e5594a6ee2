// What stands around the matrix products of linear and feed_forward: the epilogue of the forward, and the sums over
// rows that bias gradients are.
#ifndef PYGPT_CPU_KERNELS_LINEAR_PARTS_H
#define PYGPT_CPU_KERNELS_LINEAR_PARTS_H

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

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

    // What sums are kept in, between calls.
    static Either numbers(compute_t<Storage>* p) {
        Either out;
        out.data = p;
        out.is_float32 = std::is_same_v<compute_t<Storage>, float>;
        return out;
    }

    explicit operator bool() const { return data != nullptr; }
    void prefetch(std::int64_t at, std::int64_t stride, std::int64_t rows, std::int64_t columns) const {
        if (is_float32) {
            prefetch_matrix(static_cast<const float*>(data) + at, stride, rows, columns);
        } else {
            prefetch_matrix(static_cast<const Storage*>(data) + at, stride, rows, columns);
        }
    }
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

// For results that are about to be written.
inline void will_write(const std::optional<TensorView>& result) {
    if (result) use_huge_pages(result->data, static_cast<std::size_t>(elements(*result) * bytes_of(result->dtype)));
}

template <class Storage>
Operand<Storage> rows_of(const Storage* data, std::int64_t width) {
    return {data, width, 1};
}
template <class Storage>
Operand<Storage> columns_of(const Storage* data, std::int64_t width) {
    return {data, 1, width};
}

// f(Operand) for a weight (N, K) of the dtype that it is multiplied in, or of float32. `transposed`: its columns as
// rows.
template <class Storage, class F>
void with_weight(const TensorView& weight, bool transposed, const F& f) {
    const std::int64_t K = weight.shape[1];
    const auto call = [&](const auto* data) { f(transposed ? columns_of(data, K) : rows_of(data, K)); };
    if (std::is_same_v<Storage, bfloat16> && weight.dtype == DType::float32) {
        call(static_cast<const float*>(weight.data));
    } else {
        call(static_cast<const Storage*>(weight.data));
    }
}

// What pack_right made of a weight, if anything.
template <class Storage>
const typename Arithmetic<Storage>::Right::type* packed_data(const std::optional<TensorView>& packed) {
    return packed ? static_cast<const typename Arithmetic<Storage>::Right::type*>(packed->data) : nullptr;
}

// f(row, column, count, sums) for every vector of a tile of sums.
template <class Number, class F>
void each_vector_of_tile(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                         const Number* sums, const F& f) {
    using V = Vec<Number>;
    if (columns == panel_columns) {
        for (std::int64_t i = 0; i < rows; ++i) {
#pragma GCC unroll 4
            for (std::int64_t j = 0; j < panel_columns; j += V::lanes) {
                f(row + i, column + j, V::lanes, V::load(sums + i * panel_columns + j));  // a constant count: no masks
            }
        }
        return;
    }
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
    Either<Storage> bias = {};
    Activation activation = Activation::none;
    Either<Storage> residual = {};
    Either<Storage> out;
    Storage* pre_activation = nullptr;  // sums + bias, where the backward needs it

    void expect(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) const {
        const std::int64_t at = row * N + column;
        out.prefetch(at, N, rows, columns);
        if (pre_activation) prefetch_matrix(pre_activation + at, N, rows, columns);
    }
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

// The gradient of a weight (.., width), a sum over rows that may come in parts: tiles of part 0, then of part 1 ...
// Where the gradient's dtype cannot hold the sum in between, it is kept aside.
template <class Storage>
class WeightGradient {
  public:
    using Number = compute_t<Storage>;
    using V = Vec<Number>;

    WeightGradient(const std::optional<TensorView>& gradient, std::int64_t parts)
        : out_(gradient),
          width_(gradient ? gradient->shape[1] : 0),
          parts_(parts),
          aside_(aside_bytes(gradient, parts)),
          kept_(aside_bytes(gradient, parts) > 0 ? Either<Storage>::numbers(static_cast<Number*>(aside_.data()))
                                                 : out_) {
        will_write(gradient);
    }

    // What product() hands the tiles of a part to.
    struct Part {
        const WeightGradient& gradient;
        bool first;
        const Either<Storage>& to;

        void expect(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) const {
            to.prefetch(row * gradient.width_ + column, gradient.width_, rows, columns);
        }
        void operator()(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns,
                        const Number* sums) const {
            each_vector_of_tile(row, rows, column, columns, sums,
                                [&](std::int64_t i, std::int64_t j, std::int64_t count, V value) {
                                    const std::int64_t at = i * gradient.width_ + j;
                                    to.store(first ? value : gradient.kept_.load(at, count) + value, at, count);
                                });
        }
    };
    Part part(std::int64_t index) const { return {*this, index == 0, index + 1 < parts_ ? kept_ : out_}; }

  private:
    static std::size_t aside_bytes(const std::optional<TensorView>& gradient, std::int64_t parts) {
        constexpr auto size = static_cast<std::int64_t>(sizeof(Number));
        if (!gradient || parts == 1 || bytes_of(gradient->dtype) == size) return 0;
        return static_cast<std::size_t>(elements(*gradient) * size);
    }

    Either<Storage> out_;
    std::int64_t width_;
    std::int64_t parts_;
    Scratch aside_;
    Either<Storage> kept_;
};

// Calls value(row, column, count) for every vector of a matrix (M, N), in tasks of rows, and sums what it returns over
// the rows: `rows_at_once` as a tree, these in order in groups of `rows_per_sum`, and the groups in order. No sums are
// made where `sums` is empty.
template <class Storage, class F>
void sum_rows(std::int64_t M, std::int64_t N, const F& value, const Either<Storage>& sums) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    constexpr std::int64_t rows_at_once = 8;
    constexpr std::int64_t rows_per_sum = 64;
    const std::int64_t groups = divide_up(M, rows_per_sum);
    const std::int64_t width = divide_up(N, V::lanes) * V::lanes;
    const Scratch scratch(sums ? static_cast<std::size_t>(groups * width) * sizeof(Number) : 0);
    auto* const partial = static_cast<Number*>(scratch.data());  // (groups, width)
    parallel_for(groups, [&](std::int64_t group) {
        Number* const sum = partial + group * width;
        const std::int64_t begin = group * rows_per_sum;
        const std::int64_t end = std::min(begin + rows_per_sum, M);
        for (std::int64_t first = begin; first < end; first += rows_at_once) {
            each_vector<V>(N, [&](std::int64_t j, std::int64_t count) {
                V v[rows_at_once];
                for (std::int64_t i = 0; i < rows_at_once; ++i) {
                    v[i] = first + i < end ? value(first + i, j, count) : V::zero();
                }
                if (!sums) return;
                const V total = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
                (first == begin ? total : V::load(sum + j) + total).store(sum + j);
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
