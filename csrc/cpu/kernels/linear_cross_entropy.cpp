// linear_cross_entropy: the loss of hidden · weightᵀ + bias, and its gradients in the same call.
//
// Per row:    loss = log Σ exp(x) - x[target],   x = hidden · weightᵀ + bias            (V,)
//             d = (softmax(x) - [column = target]) · g, g = the gradient of the row's loss
// Gradients:  grad_hidden = d · weight (M, C);   grad_weight = dᵀ · hidden (V, C);   grad_bias = Σ_rows d
//
// The gradient is not left to a backward that would have to compute the logits again, since that is a fourth product of
// 2·M·V·C operations on top of three: where g is known with the loss (a mean or a sum, up to a common factor), loss and
// gradients come from one pass. Rows are taken in blocks whose logits, in float32, take about `logits_bytes`; in their
// place d is written, rounded to hidden's dtype, and the other two products read it. Logits of all rows never exist.
//
// Rows whose target is ignore_index take no part: the others are gathered, so that nothing they hold and no number of
// them reaches a result. A row's exponentials are summed as cross_entropy sums them. Weight gradients are summed over
// the blocks in order; what a block is follows from V alone.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/kernels/linear_parts.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/softmax_row.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

using linear_cross_entropy::Reduction;

constexpr std::int64_t logits_bytes = std::int64_t{128} << 20;
constexpr std::int64_t least_block_rows = 64;

std::int64_t rows_of_block(std::int64_t vocabulary) {
    const std::int64_t rows = logits_bytes / (vocabulary * static_cast<std::int64_t>(sizeof(float)));
    return std::max(least_block_rows, rows / least_block_rows * least_block_rows);
}

// The logits of one row become the gradient d, in place: V elements of Storage from the row's start on.
template <class Storage>
void to_gradient(compute_t<Storage>* logits, std::int64_t V, const LogSumExp<compute_t<Storage>>& exponentials,
                 std::int64_t target, compute_t<Storage> g) {
    using Number = compute_t<Storage>;
    using Lanes = Vec<Number>;
    const Lanes shift = Lanes::broadcast(exponentials.maximum);
    const Lanes per_sum = Lanes::broadcast(Number(1) / exponentials.sum);
    const Lanes scale = Lanes::broadcast(g) * per_sum;
    const Lanes predicted = exp(Lanes::broadcast(logits[target]) - shift) * per_sum;
    constexpr std::int64_t part = 256;
    Storage gradient[part];
    auto* to = reinterpret_cast<char*>(logits);
    for (std::int64_t first = 0; first < V; first += part) {
        const std::int64_t columns = std::min(part, V - first);
        each_vector<Lanes>(columns, [&](std::int64_t i, std::int64_t lanes) {
            store_some(exp(load_some<Lanes>(logits + first + i, lanes) - shift) * scale, gradient + i, lanes);
        });
        if (first <= target && target < first + columns) {
            ((predicted - Lanes::broadcast(Number(1))) * Lanes::broadcast(g)).store(gradient + target - first, 1);
        }
        std::memcpy(to + first * static_cast<std::int64_t>(sizeof(Storage)), gradient,
                    static_cast<std::size_t>(columns) * sizeof(Storage));
    }
}

template <class Storage>
void forward_typed(const linear_cross_entropy::Forward& a) {
    using Number = compute_t<Storage>;
    const auto* const targets = static_cast<const std::int64_t*>(a.targets.data);
    const auto* const hidden = static_cast<const Storage*>(a.hidden.data);
    const auto* const grad_losses = a.grad_losses ? static_cast<const Number*>(a.grad_losses->data) : nullptr;
    const bool has_gradients = a.grad_hidden || a.grad_weight || a.grad_bias;

    const Scratch counted_scratch(static_cast<std::size_t>(a.M) * sizeof(std::int64_t));
    auto* const counted = static_cast<std::int64_t*>(counted_scratch.data());  // the rows that are not ignored
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < a.M; ++row) {
        if (targets[row] != a.ignore_index) counted[count++] = row;
    }
    const bool mean = a.reduction == Reduction::mean;
    const Number shared = mean && count > 0 ? Number(1) / static_cast<Number>(count) : Number(1);

    const bool own_losses = a.loss && a.reduction == Reduction::none;
    const Scratch losses_scratch(own_losses ? 0 : static_cast<std::size_t>(a.M) * sizeof(Number));
    auto* const losses = static_cast<Number*>(own_losses ? a.loss->data : losses_scratch.data());
    std::fill(losses, losses + a.M, Number(0));

    // The weight in the dtype that it is multiplied in: every block reads it twice.
    const bool rounded = a.weight.dtype != a.hidden.dtype;
    const Scratch rounded_scratch(rounded ? static_cast<std::size_t>(a.V * a.C) * sizeof(Storage) : 0);
    auto* const weight = static_cast<Storage*>(rounded ? rounded_scratch.data() : a.weight.data);
    if (rounded) {
        const Either<Storage> original(a.weight);
        parallel_for(a.V, [&](std::int64_t row) {
            each_vector<Vec<Number>>(a.C, [&](std::int64_t j, std::int64_t lanes) {
                store_some(original.load(row * a.C + j, lanes), weight + row * a.C + j, lanes);
            });
        });
    }

    const std::int64_t block_rows = rows_of_block(a.V);
    const std::int64_t blocks = std::max<std::int64_t>(1, divide_up(count, block_rows));
    const std::int64_t most_rows = std::min(count, block_rows);
    const Scratch logits_scratch(static_cast<std::size_t>(most_rows * a.V) * sizeof(Number));
    const Scratch gathered_scratch(static_cast<std::size_t>(most_rows * a.C) * sizeof(Storage));
    const Scratch bias_scratch(a.grad_bias ? static_cast<std::size_t>(blocks * a.V) * sizeof(Number) : 0);
    auto* const logits = static_cast<Number*>(logits_scratch.data());       // (block_rows, V)
    auto* const gathered = static_cast<Storage*>(gathered_scratch.data());  // (block_rows, C)
    auto* const bias_sums = static_cast<Number*>(bias_scratch.data());      // (blocks, V)
    const auto* const d = reinterpret_cast<const Storage*>(logits);         // (block_rows, V), rows d_stride apart
    const std::int64_t d_stride = a.V * static_cast<std::int64_t>(sizeof(Number) / sizeof(Storage));
    const WeightGradient<Storage> grad_weight(a.grad_weight, blocks);
    will_write(a.grad_hidden);
    if (a.grad_hidden && count < a.M) {
        std::memset(a.grad_hidden->data, 0, static_cast<std::size_t>(a.M * a.C) * sizeof(Storage));
    }

    for (std::int64_t block = 0; block < blocks; ++block) {
        const std::int64_t* const row_of_block = counted + block * block_rows;
        const std::int64_t rows = std::min(block_rows, count - block * block_rows);
        for (std::int64_t i = 0; i < rows; ++i) {
            std::copy_n(hidden + row_of_block[i] * a.C, a.C, gathered + i * a.C);
        }
        const Epilogue<Storage> epilogue{
            .N = a.V, .bias = Either<Storage>(a.bias), .out = Either<Storage>::numbers(logits)};
        product(rows_of<Storage>(gathered, a.C), rows_of<Storage>(weight, a.C), nullptr, rows, a.V, a.C, epilogue);
        parallel_for(rows, [&](std::int64_t i) {
            const std::int64_t row = row_of_block[i];
            Number* const x = logits + i * a.V;
            const auto exponentials = log_sum_exp<Vec<Number>>(x, a.V);
            losses[row] = exponentials.loss(x[targets[row]]);
            if (has_gradients) {
                to_gradient<Storage>(x, a.V, exponentials, targets[row], grad_losses ? grad_losses[row] : shared);
            }
        });
        if (a.grad_hidden) {
            auto* const grad_hidden = static_cast<Storage*>(a.grad_hidden->data);
            product(Operand<Storage>{d, d_stride, 1}, columns_of<Storage>(weight, a.C), nullptr, rows, a.C, a.V,
                    [&](std::int64_t first, std::int64_t height, std::int64_t column, std::int64_t columns,
                        const Number* sums) {
                        each_vector_of_tile(first, height, column, columns, sums,
                                            [&](std::int64_t i, std::int64_t j, std::int64_t lanes, Vec<Number> value) {
                                                store_some(value, grad_hidden + row_of_block[i] * a.C + j, lanes);
                                            });
                    });
        }
        if (a.grad_weight) {
            product(Operand<Storage>{d, 1, d_stride}, columns_of<Storage>(gathered, a.C), nullptr, a.V, a.C, rows,
                    grad_weight.part(block));
        }
        if (a.grad_bias) {
            const auto gradient = [&](std::int64_t i, std::int64_t column, std::int64_t lanes) {
                return load_some<Vec<Number>>(d + i * d_stride + column, lanes);
            };
            sum_rows(rows, a.V, gradient, Either<Storage>::numbers(bias_sums + block * a.V));
        }
    }
    if (a.grad_bias) {
        const auto block_sums = [&](std::int64_t block, std::int64_t column, std::int64_t lanes) {
            return load_some<Vec<Number>>(bias_sums + block * a.V + column, lanes);
        };
        sum_rows(blocks, a.V, block_sums, Either<Storage>(*a.grad_bias));
    }
    if (!a.loss || own_losses) return;
    double total = 0;
    for (std::int64_t row = 0; row < a.M; ++row) total += losses[row];
    if (mean && count > 0) total /= static_cast<double>(count);
    *static_cast<Number*>(a.loss->data) = static_cast<Number>(total);
}

}  // namespace

template <>
void linear_cross_entropy_forward<this_isa>(const linear_cross_entropy::Forward& a) {
    with_storage(a.hidden.dtype, [&](auto storage) { forward_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
