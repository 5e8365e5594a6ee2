// Cross-entropy, forward and backward. logits (R, V), targets (R,) -> a loss for each row, or their sum or mean
//
// Forward, per row:   m = max(x);  s = Σ exp(x - m);  loss = (m - x[target]) + log s
// Backward, per row:  grad_x = (exp(x - m) / s - [column = target]) · g, g = the gradient of the row's loss
//
// m and s are kept apart: m + log s would round away the digits of s where logits are large.
// Tasks are rows (several where they are short). The forward reads each logit from memory once and again from L1, and
// keeps two numbers a row for the backward, which reads and writes each element once: those are the floors. The sum
// over rows runs in their order, in double.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/softmax_row.h"
#include "cpu/thread_pool.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t elements_per_task = 32768;

// f(row) for every row.
template <class F>
void each_row(std::int64_t rows, std::int64_t vocabulary, F f) {
    const std::int64_t rows_per_task = std::max<std::int64_t>(1, elements_per_task / vocabulary);
    parallel_for((rows + rows_per_task - 1) / rows_per_task, [&](std::int64_t task) {
        const std::int64_t first = task * rows_per_task;
        for (std::int64_t row = first; row < std::min(first + rows_per_task, rows); ++row) f(row);
    });
}

std::int64_t rows_that_count(const TensorView& targets, std::int64_t rows, std::int64_t ignore_index) {
    const auto* target = static_cast<const std::int64_t*>(targets.data);
    return rows - std::count(target, target + rows, ignore_index);
}

template <class Storage>
void forward_typed(const cross_entropy::Forward& a) {
    using Number = compute_t<Storage>;
    using cross_entropy::Reduction;
    const auto* targets = static_cast<const std::int64_t*>(a.targets.data);
    const Scratch scratch(a.reduction == Reduction::none ? 0 : static_cast<std::size_t>(a.rows) * sizeof(Number));
    auto* losses = static_cast<Number*>(a.reduction == Reduction::none ? a.loss.data : scratch.data());
    auto* maximum = a.maximum ? static_cast<Number*>(a.maximum->data) : nullptr;
    auto* sum = a.sum ? static_cast<Number*>(a.sum->data) : nullptr;
    each_row(a.rows, a.vocabulary, [&](std::int64_t row) {
        const std::int64_t target = targets[row];
        if (target == a.ignore_index) {
            losses[row] = 0;
            if (maximum) maximum[row] = 0;
            if (sum) sum[row] = 1;
            return;
        }
        const Storage* logits = row_of<Storage>(a.logits, row, a.vocabulary);
        const auto exponentials = log_sum_exp<Vec<Number>>(logits, a.vocabulary);
        losses[row] = exponentials.loss(read(logits + target));
        if (maximum) maximum[row] = exponentials.maximum;
        if (sum) sum[row] = exponentials.sum;
    });
    if (a.reduction == Reduction::none) return;
    double total = 0;
    for (std::int64_t row = 0; row < a.rows; ++row) total += losses[row];
    const std::int64_t count = rows_that_count(a.targets, a.rows, a.ignore_index);
    if (a.reduction == Reduction::mean && count > 0) total /= static_cast<double>(count);
    *static_cast<Number*>(a.loss.data) = static_cast<Number>(total);
}

template <class Storage>
void backward_typed(const cross_entropy::Backward& a) {
    using Number = compute_t<Storage>;
    using V = Vec<Number>;
    using cross_entropy::Reduction;
    const auto* targets = static_cast<const std::int64_t*>(a.targets.data);
    const auto* grad_loss = static_cast<const Number*>(a.grad_loss.data);
    const auto* maximum = static_cast<const Number*>(a.maximum.data);
    const auto* sum = static_cast<const Number*>(a.sum.data);
    Number shared = 0;  // the gradient of each row's loss, where they have one in common
    if (a.reduction != Reduction::none) shared = *grad_loss;
    if (a.reduction == Reduction::mean) {
        const std::int64_t count = rows_that_count(a.targets, a.rows, a.ignore_index);
        shared = count > 0 ? shared / static_cast<Number>(count) : Number(0);
    }
    each_row(a.rows, a.vocabulary, [&](std::int64_t row) {
        const std::int64_t target = targets[row];
        const Storage* logits = row_of<Storage>(a.logits, row, a.vocabulary);
        Storage* grad_logits = row_of<Storage>(a.grad_logits, row, a.vocabulary);
        if (target == a.ignore_index) {
            std::memset(static_cast<void*>(grad_logits), 0, static_cast<std::size_t>(a.vocabulary) * sizeof(Storage));
            return;
        }
        const Number grad = a.reduction == Reduction::none ? grad_loss[row] : shared;
        const V shift = V::broadcast(maximum[row]);
        const V per_sum = V::broadcast(Number(1) / sum[row]);
        const V scale = V::broadcast(grad) * per_sum;
        map_row<V>(
            a.vocabulary,
            [&](std::int64_t i, std::int64_t lanes) { return exp(V::load(logits + i, lanes) - shift) * scale; },
            [&](std::int64_t i, std::int64_t lanes, V gradient) { gradient.store(grad_logits + i, lanes); });
        const V predicted = exp(V::broadcast(read(logits + target)) - shift) * per_sum;
        ((predicted - V::broadcast(Number(1))) * V::broadcast(grad)).store(grad_logits + target, 1);
    });
}

}  // namespace

template <>
void cross_entropy_forward<this_isa>(const cross_entropy::Forward& a) {
    with_storage(a.logits.dtype, [&](auto storage) { forward_typed<decltype(storage)>(a); });
}

template <>
void cross_entropy_backward<this_isa>(const cross_entropy::Backward& a) {
    with_storage(a.logits.dtype, [&](auto storage) { backward_typed<decltype(storage)>(a); });
}

}  // namespace pygpt::cpu
