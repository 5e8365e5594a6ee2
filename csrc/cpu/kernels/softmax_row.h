// The logarithm of the sum of exponentials of a row of logits, in blocks: what cross_entropy computes from stored
// logits and linear_cross_entropy from logits that it never stores. Both cut the vocabulary into blocks of
// `softmax_block` columns, take each block's maximum m and sum Σ e^(x - m) on its own, and merge the blocks in order;
// so their losses have the same bits, and blocks may be computed by any thread in any order.
#ifndef PYGPT_CPU_KERNELS_SOFTMAX_ROW_H
#define PYGPT_CPU_KERNELS_SOFTMAX_ROW_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/kernels/simd.h"

namespace pygpt::cpu {
namespace {

constexpr std::int64_t softmax_block = 512;

template <class Number>
struct LogSumExp {
    Number maximum = -std::numeric_limits<Number>::infinity();
    Number sum = 0;  // Σ e^(x - maximum); NaN where a logit is NaN or +inf, or hides behind one

    void merge(const LogSumExp& next) {
        if (next.maximum > maximum) {
            sum = sum * std::exp(maximum - next.maximum) + next.sum;
            maximum = next.maximum;
        } else if (next.maximum > -std::numeric_limits<Number>::infinity()) {
            sum += next.sum * std::exp(next.maximum - maximum);
        } else {
            sum += next.sum;  // 0, or NaN
        }
    }
    Number value() const { return maximum + std::log(sum); }

    // -log softmax of the logit x of this row; in this order, so that the small loss of a sure prediction keeps its
    // digits.
    Number loss(Number x) const { return (maximum - x) + std::log(sum); }
};

// One block: `count` logits, 0 to softmax_block.
template <class V, class Storage>
[[maybe_unused]] auto log_sum_exp_of_block(const Storage* logits, std::int64_t count) {
    using Number = compute_t<Storage>;
    const V lowest = V::broadcast(-std::numeric_limits<Number>::infinity());
    constexpr int chains = 4;
    V maxima[chains] = {lowest, lowest, lowest, lowest};
    V sums[chains] = {V::zero(), V::zero(), V::zero(), V::zero()};
    const auto each_vector = [&](auto f) {
        std::int64_t i = 0;
        for (; i + chains * V::lanes <= count; i += chains * V::lanes) {
#pragma GCC unroll 4
            for (int chain = 0; chain < chains; ++chain) f(chain, V::load(logits + i + chain * V::lanes));
        }
#pragma GCC unroll 4
        for (int chain = 0; chain < chains; ++chain) {
            const std::int64_t lanes = std::min(V::lanes, count - i - chain * V::lanes);
            if (lanes <= 0) break;
            f(chain, select_first(lanes, V::load(logits + i + chain * V::lanes, lanes), lowest));
        }
    };
    each_vector([&](int chain, V x) { maxima[chain] = max(x, maxima[chain]); });
    LogSumExp<Number> block;
    block.maximum = reduce_max(max(max(maxima[0], maxima[1]), max(maxima[2], maxima[3])));
    // A block of -inf alone adds nothing; one with a NaN must still reach the sum.
    const V shift = V::broadcast(block.maximum == -std::numeric_limits<Number>::infinity() ? Number(0) : block.maximum);
    each_vector([&](int chain, V x) { sums[chain] = sums[chain] + exp(x - shift); });
    block.sum = reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
    return block;
}

// A whole row.
template <class V, class Storage>
[[maybe_unused]] auto log_sum_exp(const Storage* logits, std::int64_t columns) {
    LogSumExp<compute_t<Storage>> row;
    for (std::int64_t i = 0; i < columns; i += softmax_block) {
        row.merge(log_sum_exp_of_block<V>(logits + i, std::min(softmax_block, columns - i)));
    }
    return row;
}

}  // namespace
}  // namespace pygpt::cpu

#endif
