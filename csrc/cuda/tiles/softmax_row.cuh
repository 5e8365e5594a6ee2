// The logarithm of the sum of exponentials of a row of logits, in blocks of `softmax_block` columns: a warp takes a
// block's maximum m and sum Σ e^(x - m) on its own; `softmax_warps` running results take the blocks in turn, merge each
// in order, and are merged in order at the end. So whoever follows this order gets the same bits, whether logits are
// stored (cross_entropy, sample) or made a block at a time and never stored. No sum here is left to the compiler to
// fuse with the last product of an exponential.
#ifndef PYGPT_CUDA_TILES_SOFTMAX_ROW_CUH
#define PYGPT_CUDA_TILES_SOFTMAX_ROW_CUH

#include "cuda/tiles/pack.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {

constexpr int softmax_block = 1024;
constexpr int softmax_warps = 8;
constexpr int softmax_threads = softmax_warps * warp_lanes;

struct LogSumExp {
    float maximum;
    float sum;  // Σ e^(x - maximum); NaN where a logit is NaN or +inf, or hides behind one

    __device__ static LogSumExp nothing() { return {-INFINITY, 0}; }

    __device__ void merge(const LogSumExp& next) {
        if (next.maximum > maximum) {
            sum = fmaf(sum, expf(maximum - next.maximum), next.sum);
            maximum = next.maximum;
        } else if (next.maximum > -INFINITY) {
            sum = fmaf(next.sum, expf(next.maximum - maximum), sum);
        } else {
            sum += next.sum;  // 0, or NaN
        }
    }
    // -log softmax of the logit x of this row; in this order, so that the small loss of a sure prediction keeps its
    // digits.
    __device__ float loss(float x) const { return (maximum - x) + logf(sum); }
};

// One block, by one warp: `count` logits, 1 to softmax_block.
template <bool aligned, class Storage>
__device__ LogSumExp log_sum_exp_of_block(const Storage* logits, std::int64_t count) {
    constexpr int vector = pack_elements<Storage>;
    constexpr int packs = softmax_block / (warp_lanes * vector);
    const std::int64_t lane = threadIdx.x % warp_lanes;
    Floats<vector> held[packs];
    float largest = -INFINITY;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
        const std::int64_t i = (k * warp_lanes + lane) * vector;
        if (i < count) held[k] = load<aligned, vector>(logits + i, count - i);
#pragma unroll
        for (int j = 0; j < vector; ++j) {
            if (i + j >= count) held[k].value[j] = -INFINITY;
            largest = fmaxf(largest, held[k].value[j]);
        }
    }
    LogSumExp block;
    block.maximum = reduce_warp(largest, Largest{});
    // A block of -inf alone adds nothing; one with a NaN must still reach the sum.
    const float shift = block.maximum == -INFINITY ? 0.0f : block.maximum;
    float sum = 0;
#pragma unroll
    for (int k = 0; k < packs; ++k) {
        if (k * warp_lanes * vector >= count) break;  // what follows would add 0
#pragma unroll
        for (int j = 0; j < vector; ++j) sum = __fadd_rn(sum, expf(held[k].value[j] - shift));
    }
    block.sum = reduce_warp(sum, Sum{});
    return block;
}

// A whole row, by a block of softmax_threads; `shared` has softmax_warps places. Every thread gets the result.
template <bool aligned, class Storage>
__device__ LogSumExp log_sum_exp(const Storage* logits, std::int64_t columns, LogSumExp* shared) {
    const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
    LogSumExp row = LogSumExp::nothing();
    for (std::int64_t i = std::int64_t{warp} * softmax_block; i < columns; i += softmax_warps * softmax_block) {
        const std::int64_t left = columns - i;
        row.merge(log_sum_exp_of_block<aligned>(logits + i, left < softmax_block ? left : softmax_block));
    }
    if (threadIdx.x % warp_lanes == 0) shared[warp] = row;
    __syncthreads();
    row = shared[0];
    for (int w = 1; w < softmax_warps; ++w) row.merge(shared[w]);
    return row;
}

}  // namespace pygpt::cuda

#endif
