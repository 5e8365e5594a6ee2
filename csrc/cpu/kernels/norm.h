// Layer norm and its form without a mean, RMS norm, forward and backward, for layer_norm.cpp and rms_norm.cpp, where
// the formulas stand. (rows, C) -> (rows, C)
//
// A row is read from memory once and stays in L1 for its second and third pass: the floor is reading x (and the
// residual) and writing y. Forward tasks are groups of rows. Backward tasks are groups of `rows_per_group` rows, cut by
// the number of rows alone; each sums its own partial grad_weight and grad_bias, and these are added in order.
// Sums along a row run in `chains` vectors of accumulators, so that the adder's latency is hidden.
#ifndef PYGPT_CPU_KERNELS_NORM_H
#define PYGPT_CPU_KERNELS_NORM_H

#include <type_traits>

#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"
#include "ops/layer_norm.h"
#include "ops/rms_norm.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t rows_per_group = 64;

// Whether an op's arguments are layer norm's, which takes the mean away and has a bias.
template <class Arguments>
constexpr bool centred =
    std::is_same_v<Arguments, layer_norm::Forward> || std::is_same_v<Arguments, layer_norm::Backward>;
template <class Arguments>
constexpr std::int64_t parameters = centred<Arguments> ? 2 : 1;  // whose gradients there are

// Two sums of one pass, side by side.
template <class V>
struct Pair {
    V first, second;
    static Pair zero() { return {V::zero(), V::zero()}; }
    friend Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
};

// Of a row; mean is 0 in RMS norm.
template <class Number>
struct Statistics {
    Number mean, rstd;
};

template <bool centred, class Storage>
Statistics<compute_t<Storage>> statistics_of_row(const Storage* x, std::int64_t width, compute_t<Storage> eps) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const auto per_width = Number(1) / static_cast<Number>(width);
    if constexpr (centred) {
        // The first mean may be off by a rounding of the sum; the second pass over the row mends it.
        const Number first_mean =
            reduce_add(sum_row<V>(width, [&](std::int64_t i, std::int64_t count) { return V::load(x + i, count); })) *
            per_width;
        const V first_mean_v = V::broadcast(first_mean);
        const Pair<V> moments = sum_row<V>(width, [&](std::int64_t i, std::int64_t count) {
            const V d = select_first(count, V::load(x + i, count) - first_mean_v, V::zero());
            return Pair<V>{d, d * d};
        });
        const Number correction = reduce_add(moments.first) * per_width;
        const Number variance = std::max(Number(0), reduce_add(moments.second) * per_width - correction * correction);
        return {first_mean + correction, Number(1) / std::sqrt(variance + eps)};
    } else {
        const V squares = sum_row<V>(width, [&](std::int64_t i, std::int64_t count) {
            const V value = V::load(x + i, count);
            return value * value;
        });
        return {0, Number(1) / std::sqrt(reduce_add(squares) * per_width + eps)};
    }
}

// Stream: of the residual, and so of what is normalised.
template <class Storage, class Stream, class Parameter, class Forward>
void forward_rows(const Forward& a, std::int64_t first_row, std::int64_t last_row) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const std::int64_t width = a.width;
    const auto* weight = static_cast<const Parameter*>(a.weight.data);
    const Parameter* bias = nullptr;
    if constexpr (centred<Forward>) bias = a.bias ? static_cast<const Parameter*>(a.bias->data) : nullptr;
    for (std::int64_t row = first_row; row < last_row; ++row) {
        const Storage* x = row_of<Storage>(a.x, row, width);
        const Stream* normalised = nullptr;
        if (a.residual) {
            const Stream* residual = row_of<Stream>(*a.residual, row, width);
            Stream* sum = row_of<Stream>(*a.sum, row, width);
            map_row<V>(
                width,
                [&](std::int64_t i, std::int64_t count) {
                    return V::load(x + i, count) + V::load(residual + i, count);
                },
                [&](std::int64_t i, std::int64_t count, V v) { v.store(sum + i, count); });
            normalised = sum;
        } else if constexpr (std::is_same_v<Stream, Storage>) {
            normalised = x;
        }
        const auto [mean, rstd] = statistics_of_row<centred<Forward>>(normalised, width, static_cast<Number>(a.eps));
        const V mean_v = V::broadcast(mean);
        const V rstd_v = V::broadcast(rstd);
        Storage* out = row_of<Storage>(a.out, row, width);
        map_row<V>(
            width,
            [&](std::int64_t i, std::int64_t count) {
                const V value = V::load(normalised + i, count);
                if constexpr (!centred<Forward>) return value * rstd_v * V::load(weight + i, count);
                const V shift = bias ? V::load(bias + i, count) : V::zero();
                return fma((value - mean_v) * rstd_v, V::load(weight + i, count), shift);
            },
            [&](std::int64_t i, std::int64_t count, V y) { y.store(out + i, count); });
        if constexpr (centred<Forward>) {
            if (a.mean) static_cast<Number*>(a.mean->data)[row] = mean;
        }
        if (a.rstd) static_cast<Number*>(a.rstd->data)[row] = rstd;
    }
}

// `grad_weight` gets the rows' sum; behind it stands, in layer norm, that of grad_bias.
template <class Storage, class Stream, class Parameter, class Backward>
void backward_rows(const Backward& a, std::int64_t first_row, std::int64_t last_row, compute_t<Storage>* grad_weight) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const std::int64_t width = a.width;
    const auto* weight = static_cast<const Parameter*>(a.weight.data);
    const V per_width = V::broadcast(Number(1) / static_cast<Number>(width));
    Number* const grad_bias = grad_weight + width;
    std::fill(grad_weight, grad_weight + parameters<Backward> * width, Number(0));
    for (std::int64_t row = first_row; row < last_row; ++row) {
        const Stream* x = row_of<Stream>(a.x, row, width);
        const Storage* grad_out = row_of<Storage>(a.grad_out, row, width);
        V mean = V::zero();
        if constexpr (centred<Backward>) mean = V::broadcast(static_cast<const Number*>(a.mean.data)[row]);
        const V rstd = V::broadcast(static_cast<const Number*>(a.rstd.data)[row]);
        const auto normalised = [&](std::int64_t i, std::int64_t count) {
            const V value = V::load(x + i, count);
            return (centred<Backward> ? value - mean : value) * rstd;
        };
        const auto sums = sum_row<V>(width, [&](std::int64_t i, std::int64_t count) {
            const V g = V::load(grad_out + i, count) * V::load(weight + i, count);
            return Pair<V>{g, g * normalised(i, count)};
        });
        const V mean_g = V::broadcast(reduce_add(sums.first)) * per_width;
        const V mean_gn = V::broadcast(reduce_add(sums.second)) * per_width;
        Stream* grad_x = row_of<Stream>(a.grad_x, row, width);
        const Stream* grad_sum = a.grad_sum ? row_of<Stream>(*a.grad_sum, row, width) : nullptr;
        Storage* grad_narrow = a.grad_narrow ? row_of<Storage>(*a.grad_narrow, row, width) : nullptr;
        struct Gradients {
            V x, weight, bias;
        };
        map_row<V>(
            width,
            [&](std::int64_t i, std::int64_t count) {
                const V n = normalised(i, count);
                const V g = V::load(grad_out + i, count);
                const V scaled = g * V::load(weight + i, count);
                const V inner = (centred<Backward> ? scaled - mean_g : scaled) - n * mean_gn;
                const V added = grad_sum ? V::load(grad_sum + i, count) : V::zero();
                return Gradients{fma(inner, rstd, added), fma(g, n, V::load(grad_weight + i, count)),
                                 centred<Backward> ? V::load(grad_bias + i, count) + g : V::zero()};
            },
            [&](std::int64_t i, std::int64_t count, const Gradients& gradients) {
                gradients.x.store(grad_x + i, count);
                if (grad_narrow) gradients.x.store(grad_narrow + i, count);
                gradients.weight.store(grad_weight + i, count);
                if constexpr (centred<Backward>) gradients.bias.store(grad_bias + i, count);
            });
    }
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

// f(Storage{}, Stream{}, Parameter{}) for the stored types of what goes through the norm's input and output, of what is
// normalised, and of the weight, which is float32 where the first two differ.
template <class F>
void with_types(DType storage, DType stream, DType weight, F f) {
    with_storage(storage, [&](auto s) {
        if constexpr (sizeof(s) == 2) {
            if (stream == DType::float32) return f(s, float{}, float{});
        }
        if (weight == DType::float32) return f(s, s, float{});
        return f(s, s, s);
    });
}

// Forward and Backward are the arguments of either op.
template <class Forward>
void norm_forward(const Forward& a) {
    const auto run = [&]<class Storage, class Stream, class Parameter>(Storage, Stream, Parameter) {
        parallel_for((a.rows + rows_per_group - 1) / rows_per_group, [&](std::int64_t group) {
            const std::int64_t first = group * rows_per_group;
            forward_rows<Storage, Stream, Parameter>(a, first, std::min(first + rows_per_group, a.rows));
        });
    };
    with_types(a.x.dtype, a.residual ? a.residual->dtype : a.x.dtype, a.weight.dtype, run);
}

template <class Backward>
void norm_backward(const Backward& a) {
    const auto run = [&]<class Storage, class Stream, class Parameter>(Storage, Stream, Parameter) {
        using Number = compute_t<Storage>;
        const std::int64_t groups = (a.rows + rows_per_group - 1) / rows_per_group;
        const std::int64_t stride = parameters<Backward> * a.width;
        const Scratch scratch(static_cast<std::size_t>(groups * stride) * sizeof(Number));
        auto* partial = static_cast<Number*>(scratch.data());
        parallel_for(groups, [&](std::int64_t group) {
            const std::int64_t first = group * rows_per_group;
            backward_rows<Storage, Stream, Parameter>(a, first, std::min(first + rows_per_group, a.rows),
                                                      partial + group * stride);
        });
        if (a.grad_weight) add_groups<Number, Parameter>(partial, groups, stride, a.width, *a.grad_weight);
        if constexpr (centred<Backward>) {
            if (a.grad_bias) add_groups<Number, Parameter>(partial + a.width, groups, stride, a.width, *a.grad_bias);
        }
    };
    with_types(a.grad_out.dtype, a.x.dtype, a.weight.dtype, run);
}

}  // namespace
}  // namespace pygpt::cpu

#endif
