// Layer norm, forward and backward. (rows, C) -> (rows, C)
//
// Forward, per row:   sum = x + residual;  mean = Σ sum / C;  rstd = 1 / sqrt(Σ (sum - mean)² / C + eps)
//                     y = (sum - mean) · rstd · weight + bias
// Backward, per row:  n = (x - mean) · rstd;  g = grad_out · weight
//                     grad_x = rstd · (g - Σ g / C - n · Σ g·n / C) + grad_sum
//          per column: grad_weight = Σ_rows grad_out · n;  grad_bias = Σ_rows grad_out
//
// A row is read from memory once and stays in L1 for its second and third pass: the floor is reading x (and the
// residual) and writing y. Forward tasks are groups of rows. Backward tasks are groups of `rows_per_group` rows, cut by
// the number of rows alone; each sums its own partial grad_weight and grad_bias, and these are added in order.
// Sums along a row run in `chains` vectors of accumulators, so that the adder's latency is hidden.
#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t rows_per_group = 64;

// Two sums of one pass, side by side.
template <class V>
struct Pair {
    V first, second;
    static Pair zero() { return {V::zero(), V::zero()}; }
    friend Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
};

template <class Storage, class Parameter>
void forward_rows(const layer_norm::Forward& a, std::int64_t first_row, std::int64_t last_row) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const std::int64_t width = a.width;
    const auto* weight = static_cast<const Parameter*>(a.weight.data);
    const auto* bias = a.bias ? static_cast<const Parameter*>(a.bias->data) : nullptr;
    for (std::int64_t row = first_row; row < last_row; ++row) {
        const Storage* x = row_of<Storage>(a.x, row, width);
        if (a.residual) {
            const Storage* residual = row_of<Storage>(*a.residual, row, width);
            Storage* sum = row_of<Storage>(*a.sum, row, width);
            map_row<V>(
                width,
                [&](std::int64_t i, std::int64_t count) {
                    return V::load(x + i, count) + V::load(residual + i, count);
                },
                [&](std::int64_t i, std::int64_t count, V v) { v.store(sum + i, count); });
            x = sum;
        }
        // The first mean may be off by a rounding of the sum; the second pass over the row mends it.
        const auto per_width = Number(1) / static_cast<Number>(width);
        const Number first_mean =
            reduce_add(sum_row<V>(width, [&](std::int64_t i, std::int64_t count) { return V::load(x + i, count); })) *
            per_width;
        const V first_mean_v = V::broadcast(first_mean);
        const Pair<V> moments = sum_row<V>(width, [&](std::int64_t i, std::int64_t count) {
            const V d = select_first(count, V::load(x + i, count) - first_mean_v, V::zero());
            return Pair<V>{d, d * d};
        });
        const Number correction = reduce_add(moments.first) * per_width;
        const Number mean = first_mean + correction;
        const V mean_v = V::broadcast(mean);
        const Number variance = std::max(Number(0), reduce_add(moments.second) * per_width - correction * correction);
        const Number rstd = Number(1) / std::sqrt(variance + static_cast<Number>(a.eps));
        const V rstd_v = V::broadcast(rstd);
        Storage* out = row_of<Storage>(a.out, row, width);
        map_row<V>(
            width,
            [&](std::int64_t i, std::int64_t count) {
                const V normalised = (V::load(x + i, count) - mean_v) * rstd_v;
                const V shift = bias ? V::load(bias + i, count) : V::zero();
                return fma(normalised, V::load(weight + i, count), shift);
            },
            [&](std::int64_t i, std::int64_t count, V y) { y.store(out + i, count); });
        if (a.mean) static_cast<Number*>(a.mean->data)[row] = mean;
        if (a.rstd) static_cast<Number*>(a.rstd->data)[row] = rstd;
    }
}

template <class Storage, class Parameter>
void backward_rows(const layer_norm::Backward& a, std::int64_t first_row, std::int64_t last_row,
                   compute_t<Storage>* grad_weight, compute_t<Storage>* grad_bias) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const std::int64_t width = a.width;
    const auto* weight = static_cast<const Parameter*>(a.weight.data);
    const V per_width = V::broadcast(Number(1) / static_cast<Number>(width));
    each_vector<V>(width, [&](std::int64_t i, std::int64_t count) {
        V::zero().store(grad_weight + i, count);
        V::zero().store(grad_bias + i, count);
    });
    for (std::int64_t row = first_row; row < last_row; ++row) {
        const Storage* x = row_of<Storage>(a.x, row, width);
        const Storage* grad_out = row_of<Storage>(a.grad_out, row, width);
        const V mean = V::broadcast(static_cast<const Number*>(a.mean.data)[row]);
        const V rstd = V::broadcast(static_cast<const Number*>(a.rstd.data)[row]);
        const auto normalised = [&](std::int64_t i, std::int64_t count) {
            return (V::load(x + i, count) - mean) * rstd;
        };
        const auto sums = sum_row<V>(width, [&](std::int64_t i, std::int64_t count) {
            const V g = V::load(grad_out + i, count) * V::load(weight + i, count);
            return Pair<V>{g, g * normalised(i, count)};
        });
        const V mean_g = V::broadcast(reduce_add(sums.first)) * per_width;
        const V mean_gn = V::broadcast(reduce_add(sums.second)) * per_width;
        Storage* grad_x = row_of<Storage>(a.grad_x, row, width);
        const Storage* grad_sum = a.grad_sum ? row_of<Storage>(*a.grad_sum, row, width) : nullptr;
        struct Gradients {
            V x, weight, bias;
        };
        map_row<V>(
            width,
            [&](std::int64_t i, std::int64_t count) {
                const V n = normalised(i, count);
                const V g = V::load(grad_out + i, count);
                const V inner = g * V::load(weight + i, count) - mean_g - n * mean_gn;
                const V added = grad_sum ? V::load(grad_sum + i, count) : V::zero();
                return Gradients{fma(inner, rstd, added), fma(g, n, V::load(grad_weight + i, count)),
                                 V::load(grad_bias + i, count) + g};
            },
            [&](std::int64_t i, std::int64_t count, const Gradients& gradients) {
                gradients.x.store(grad_x + i, count);
                gradients.weight.store(grad_weight + i, count);
                gradients.bias.store(grad_bias + i, count);
            });
    }
}

template <class Storage, class Parameter>
void forward_typed(const layer_norm::Forward& a) {
    parallel_for((a.rows + rows_per_group - 1) / rows_per_group, [&](std::int64_t group) {
        const std::int64_t first = group * rows_per_group;
        forward_rows<Storage, Parameter>(a, first, std::min(first + rows_per_group, a.rows));
    });
}

// Adds the groups' partial sums, in order, into the parameter's gradient.
template <class Number, class Parameter>
void add_groups(const Number* partial, std::int64_t groups, std::int64_t stride, std::int64_t width,
                const TensorView& out) {
    using V = Vec<Number>;
    auto* target = static_cast<Parameter*>(out.data);
    each_vector<V>(width, [&](std::int64_t i, std::int64_t count) {
        V sum = V::zero();
        for (std::int64_t group = 0; group < groups; ++group) sum = sum + V::load(partial + group * stride + i, count);
        sum.store(target + i, count);
    });
}

template <class Storage, class Parameter>
void backward_typed(const layer_norm::Backward& a) {
    using Number = compute_t<Storage>;
    const std::int64_t groups = (a.rows + rows_per_group - 1) / rows_per_group;
    const std::int64_t stride = 2 * a.width;  // of a group: grad_weight, grad_bias
    const Scratch scratch(static_cast<std::size_t>(groups * stride) * sizeof(Number));
    auto* partial = static_cast<Number*>(scratch.data());
    parallel_for(groups, [&](std::int64_t group) {
        const std::int64_t first = group * rows_per_group;
        Number* sums = partial + group * stride;
        backward_rows<Storage, Parameter>(a, first, std::min(first + rows_per_group, a.rows), sums, sums + a.width);
    });
    if (a.grad_weight) add_groups<Number, Parameter>(partial, groups, stride, a.width, *a.grad_weight);
    if (a.grad_bias) add_groups<Number, Parameter>(partial + a.width, groups, stride, a.width, *a.grad_bias);
}

}  // namespace

template <>
void layer_norm_forward<this_isa>(const layer_norm::Forward& a) {
    switch (a.x.dtype) {
        case DType::bfloat16:
            return a.weight.dtype == DType::float32 ? forward_typed<bfloat16, float>(a)
                                                    : forward_typed<bfloat16, bfloat16>(a);
        case DType::float64:
            if constexpr (this_isa == Isa::scalar) {
                return a.weight.dtype == DType::float32 ? forward_typed<double, float>(a)
                                                        : forward_typed<double, double>(a);
            }
            return;
        default:
            return forward_typed<float, float>(a);
    }
}

template <>
void layer_norm_backward<this_isa>(const layer_norm::Backward& a) {
    switch (a.x.dtype) {
        case DType::bfloat16:
            return a.weight.dtype == DType::float32 ? backward_typed<bfloat16, float>(a)
                                                    : backward_typed<bfloat16, bfloat16>(a);
        case DType::float64:
            if constexpr (this_isa == Isa::scalar) {
                return a.weight.dtype == DType::float32 ? backward_typed<double, float>(a)
                                                        : backward_typed<double, double>(a);
            }
            return;
        default:
            return backward_typed<float, float>(a);
    }
}

}  // namespace pygpt::cpu
