// The logarithm of the sum of exponentials of a row of logits, in blocks of softmax_block<> columns: a warp takes a
// block's maximum m and sum Σ e^(x - m) on its own; `softmax_parts` running results take the blocks in turn, merge each
// in order, and are merged as a tree at the end. So whoever follows this order gets the same bits, whatever the number
// of his warps, whether logits are stored (cross_entropy, sample) or made a block at a time and never stored. No sum
// here is left to the compiler to fuse with the last product of an exponential.
#ifndef PYGPT_CUDA_TILES_SOFTMAX_ROW_CUH
#define PYGPT_CUDA_TILES_SOFTMAX_ROW_CUH

#include "cuda/ptx/convert.cuh"
#include "cuda/tiles/any_row.cuh"
#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {

constexpr int softmax_packs = 4;           // of a block, that a lane has on their way at one time
constexpr int softmax_parts = warp_lanes;  // a lane each, at the end
template <class Storage>
constexpr int softmax_block = warp_lanes * softmax_packs * pack_elements<Storage>;

// e^x for the distance x <= 0 of a logit from the largest: a few units in the last place of 1 from it, 0 where it would
// be denormal.
__device__ inline float softmax_exp(float x) {
    constexpr float log2_e = 1.44269504f;
    return ptx::exp2_approx(__fmul_rn(x, log2_e));
}

struct LogSumExp {
    float maximum;
    float sum;  // Σ e^(x - maximum); NaN where a logit is NaN or +inf, or hides behind one

    __device__ static LogSumExp nothing() { return {-INFINITY, 0}; }

    __device__ void merge(const LogSumExp& next) {
        if (next.maximum > maximum) {
            sum = fmaf(sum, softmax_exp(maximum - next.maximum), next.sum);
            maximum = next.maximum;
        } else if (next.maximum > -INFINITY) {
            sum = fmaf(next.sum, softmax_exp(next.maximum - maximum), sum);
        } else {
            sum += next.sum;  // 0, or NaN
        }
    }
    // -log softmax of the logit x of this row; in this order, so that the small loss of a sure prediction keeps its
    // digits.
    __device__ float loss(float x) const { return (maximum - x) + logf(sum); }
};

// One block, by one warp: `count` logits from column `first` on, 1 to softmax_block<>; keep(column, logits) is called
// for each pack, columns that do not exist being -inf.
template <class Storage, class Keep>
__device__ LogSumExp log_sum_exp_of_block(const AnyRow<Storage>& row, std::int64_t first, int count, Keep keep) {
    constexpr int vector = pack_elements<Storage>;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    Floats<vector> held[softmax_packs];
    if (count == softmax_block<Storage> && row.readable(first, count)) {
#pragma unroll
        for (int k = 0; k < softmax_packs; ++k) held[k] = row.pack(first + (k * warp_lanes + lane) * vector);
    } else {
#pragma unroll
        for (int k = 0; k < softmax_packs; ++k) {
            const int i = (k * warp_lanes + lane) * vector;
            if (i + vector <= count && row.readable(first + i, vector)) {
                held[k] = row.pack(first + i);
            } else {
#pragma unroll
                for (int j = 0; j < vector; ++j) {
                    held[k].value[j] = i + j < count ? to_float(row.first[first + i + j]) : -INFINITY;
                }
            }
        }
    }
    float largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < softmax_packs; ++k) {
        keep(first + (k * warp_lanes + lane) * vector, held[k]);
#pragma unroll
        for (int j = 0; j < vector; ++j) largest = fmaxf(largest, held[k].value[j]);
    }
    LogSumExp block;
    block.maximum = reduce_warp(largest, Largest{});
    // A block of -inf alone adds nothing; one with a NaN must still reach the sum.
    const float shift = block.maximum == -INFINITY ? 0.0f : block.maximum;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < softmax_packs; ++k) {
        if (k * warp_lanes * vector >= count) break;  // what follows would add 0
#pragma unroll
        for (int j = 0; j < vector; ++j) sum = __fadd_rn(sum, softmax_exp(held[k].value[j] - shift));
    }
    block.sum = reduce_warp(sum, Sum{});
    return block;
}

// A whole row, by a block of whole warps, as many as divide softmax_parts; `shared` has softmax_parts places. Every
// thread gets the result, and all have read the row then. For `keep` see above.
template <class Storage, class Keep>
__device__ LogSumExp log_sum_exp(const AnyRow<Storage>& row, std::int64_t columns, LogSumExp* shared, Keep keep) {
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const int warps = static_cast<int>(blockDim.x) / warp_lanes;
    constexpr int block = softmax_block<Storage>;
    for (int part = static_cast<int>(threadIdx.x) / warp_lanes; part < softmax_parts; part += warps) {
        LogSumExp own = LogSumExp::nothing();
        for (std::int64_t i = std::int64_t{part} * block; i < columns; i += softmax_parts * block) {
            const std::int64_t left = columns - i;
            const int count = left < block ? static_cast<int>(left) : block;
            own.merge(log_sum_exp_of_block(row, i, count, keep));
        }
        if (lane == 0) shared[part] = own;
    }
    __syncthreads();
    const LogSumExp part = shared[lane];
    LogSumExp all;
    all.maximum = reduce_warp(part.maximum, Largest{});
    const float shift = all.maximum == -INFINITY ? 0.0f : all.maximum;
    all.sum = reduce_warp(__fmul_rn(part.sum, softmax_exp(part.maximum - shift)), Sum{});
    return all;
}
template <class Storage>
__device__ LogSumExp log_sum_exp(const AnyRow<Storage>& row, std::int64_t columns, LogSumExp* shared) {
    return log_sum_exp(row, columns, shared, [](std::int64_t, const Floats<pack_elements<Storage>>&) {});
}

}  // namespace pygpt::cuda

#endif
