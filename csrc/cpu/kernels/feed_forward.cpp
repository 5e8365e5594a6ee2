// feed_forward, forward and backward: the two products of a transformer's feed-forward part, in one call.
//
// Forward:   z = x · w_inᵀ + b_in                          (M, C) -> (M, hidden), kept for the backward
//            out = activation(z) · w_outᵀ + b_out          (M, hidden) -> (M, N)
// Backward:  g = (grad_out · w_out) · activation'(z)       (M, hidden)
//            grad_x = g · w_in                             (M, C)
//            grad_w_in = gᵀ · x                            (hidden, C), grad_b_in = Σ_rows g
//            grad_w_out = grad_outᵀ · activation(z)        (N, hidden), grad_b_out = Σ_rows grad_out
//
// Both run over blocks of `block_rows` rows, so that what is as wide as `hidden` and not kept (the activated rows, g)
// lies in the shared cache between the products, and takes no memory of the size of z. The backward computes
// activation(z) again from z: one exponential, shared with the derivative, against M · hidden numbers kept from the
// forward. Weight gradients are summed over the blocks in order. The floor is 2·M·C·hidden + 2·M·hidden·N operations
// forward and twice that backward.
#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/kernels/linear_parts.h"
#include "cpu/kernels/rows.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t block_rows = 1024;

template <class Storage>
Storage* at_row(const TensorView& tensor, std::int64_t row, std::int64_t width) {
    return static_cast<Storage*>(tensor.data) + row * width;
}

template <class Storage>
void forward_typed(const feed_forward::Forward& a) {
    will_write(a.out);
    will_write(a.pre_activation);
    const Scratch scratch(static_cast<std::size_t>(std::min(block_rows, a.M) * a.hidden) * sizeof(Storage));
    auto* const activated = static_cast<Storage*>(scratch.data());  // (block_rows, hidden)
    for (std::int64_t row = 0; row < a.M; row += block_rows) {
        const std::int64_t rows = std::min(block_rows, a.M - row);
        const Epilogue<Storage> inner{
            .N = a.hidden,
            .bias = Either<Storage>(a.b_in),
            .activation = a.activation,
            .out = Either<Storage>(activated),
            .pre_activation = a.pre_activation ? at_row<Storage>(*a.pre_activation, row, a.hidden) : nullptr,
        };
        with_weight<Storage>(a.w_in, false, [&](auto w_in) {
            product(rows_of<Storage>(at_row<Storage>(a.x, row, a.C), a.C), w_in, packed_data<Storage>(a.packed_w_in),
                    rows, a.hidden, a.C, inner);
        });
        const Epilogue<Storage> outer{
            .N = a.N,
            .bias = Either<Storage>(a.b_out),
            .out = Either<Storage>(at_row<Storage>(a.out, row, a.N)),
        };
        with_weight<Storage>(a.w_out, false, [&](auto w_out) {
            product(rows_of<Storage>(activated, a.hidden), w_out, packed_data<Storage>(a.packed_w_out), rows, a.N,
                    a.hidden, outer);
        });
    }
}

template <class Storage>
void backward_typed(const feed_forward::Backward& a) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    const auto summed = [](const Storage* matrix, std::int64_t width) {
        return [=](std::int64_t row, std::int64_t column, std::int64_t count) {
            return load_some<V>(matrix + row * width + column, count);
        };
    };
    if (a.grad_b_out) {
        sum_rows(a.M, a.N, summed(at_row<Storage>(a.grad_out, 0, 0), a.N), Either<Storage>(*a.grad_b_out));
    }
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(a.M, block_rows));
    const auto block_elements = static_cast<std::size_t>(std::min(block_rows, a.M) * a.hidden);
    const Scratch activated_scratch(a.grad_w_out ? block_elements * sizeof(Storage) : 0);
    const Scratch gradient_scratch(block_elements * sizeof(Storage));
    const Scratch bias_scratch(a.grad_b_in ? static_cast<std::size_t>(blocks * a.hidden) * sizeof(Number) : 0);
    auto* const activated = static_cast<Storage*>(a.grad_w_out ? activated_scratch.data() : nullptr);
    auto* const g = static_cast<Storage*>(gradient_scratch.data());     // both (block_rows, hidden)
    auto* const bias_sums = static_cast<Number*>(bias_scratch.data());  // (blocks, hidden)
    will_write(a.grad_x);
    const WeightGradient<Storage> grad_w_in(a.grad_w_in, blocks);
    const WeightGradient<Storage> grad_w_out(a.grad_w_out, blocks);

    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t row = block * block_rows;
        const std::int64_t rows = std::min(block_rows, a.M - row);
        const Storage* grad_out = at_row<Storage>(a.grad_out, row, a.N);
        const Storage* x = at_row<Storage>(a.x, row, a.C);
        const Storage* z = at_row<Storage>(a.pre_activation, row, a.hidden);
        const auto through_activation = [&](std::int64_t first, std::int64_t height, std::int64_t column,
                                            std::int64_t columns, const Number* sums) {
            each_vector_of_tile(
                first, height, column, columns, sums, [&](std::int64_t i, std::int64_t j, std::int64_t count, V sum) {
                    const std::int64_t at = i * a.hidden + j;
                    const auto [value, slope] = activate_with_slope(a.activation, load_some<V>(z + at, count));
                    store_some(sum * slope, g + at, count);
                    if (activated) store_some(value, activated + at, count);
                });
        };
        with_weight<Storage>(a.w_out, true, [&](auto w_out) {
            product(rows_of(grad_out, a.N), w_out, nullptr, rows, a.hidden, a.N, through_activation);
        });
        if (a.grad_x) {
            const Epilogue<Storage> epilogue{.N = a.C, .out = Either<Storage>(at_row<Storage>(*a.grad_x, row, a.C))};
            with_weight<Storage>(a.w_in, true, [&](auto w_in) {
                product(rows_of<Storage>(g, a.hidden), w_in, nullptr, rows, a.C, a.hidden, epilogue);
            });
        }
        if (a.grad_w_in) {
            product(columns_of<Storage>(g, a.hidden), columns_of(x, a.C), nullptr, a.hidden, a.C, rows,
                    grad_w_in.part(block));
        }
        if (a.grad_w_out) {
            product(columns_of(grad_out, a.N), columns_of<Storage>(activated, a.hidden), nullptr, a.N, a.hidden, rows,
                    grad_w_out.part(block));
        }
        if (a.grad_b_in) {
            sum_rows(rows, a.hidden, summed(g, a.hidden), Either<Storage>::numbers(bias_sums + block * a.hidden));
        }
    }
    if (a.grad_b_in) {
        const auto block_sums = [&](std::int64_t block, std::int64_t column, std::int64_t count) {
            return load_some<V>(bias_sums + block * a.hidden + column, count);
        };
        sum_rows(blocks, a.hidden, block_sums, Either<Storage>(*a.grad_b_in));
    }
}

}  // namespace

template <>
void feed_forward_forward<this_isa>(const feed_forward::Forward& a) {
    with_storage(a.x.dtype, [&](auto storage) { forward_typed<decltype(storage)>(a); });
}

template <>
void feed_forward_backward<this_isa>(const feed_forward::Backward& a) {
    with_storage(a.x.dtype, [&](auto storage) { backward_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
