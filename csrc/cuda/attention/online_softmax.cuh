// The softmax of rows whose scores come tile by tile (Milakov, Gimelshein, "Online normalizer calculation for softmax",
// 2018), for the rows of a warp's accumulators.
//
//     m' = max(m, scores);  p = 2^(scores - m');  sum = sum · 2^(m - m') + Σ p;  out = out · 2^(m - m') + p · v
//
// A tile of nothing but hidden keys leaves a row as it is, to the bit: m stays, the factor is 1, p is 0.
#ifndef PYGPT_CUDA_ATTENTION_ONLINE_SOFTMAX_CUH
#define PYGPT_CUDA_ATTENTION_ONLINE_SOFTMAX_CUH

#include "cuda/attention/scores.cuh"

namespace pygpt::cuda {
namespace {

template <int fragments>
struct OnlineSoftmax {
    float maximum[fragments][2];  // of rows g and g + 8, in units of log 2
    float sum[fragments][2];      // of this lane's columns

    __device__ OnlineSoftmax() {
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) maximum[i][half] = -infinity, sum[i][half] = 0;
        }
    }

    // Scores become weights (but for the sum they are to be divided by); what is summed of the rows before is rescaled.
    template <int blocks, int out_blocks>
    __device__ void step(Accumulators<fragments, blocks>& x, Accumulators<fragments, out_blocks>& out) {
        float factor[fragments][2];
        bool moved = false;
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = maximum[i][half];
#pragma unroll
                for (int j = 0; j < blocks; ++j) most = fmaxf(most, fmaxf(x[i][j][2 * half], x[i][j][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(all_lanes, most, 1));
                most = fmaxf(most, __shfl_xor_sync(all_lanes, most, 2));
                const float from = most == -infinity ? 0 : most;
                factor[i][half] = ptx::exp2_approx(maximum[i][half] - from);
                moved |= most != maximum[i][half];
                maximum[i][half] = most;
                float part = 0;
#pragma unroll
                for (int j = 0; j < blocks; ++j) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) {
                        x[i][j][e] = ptx::exp2_approx(x[i][j][e] - from);
                        part += x[i][j][e];
                    }
                }
                sum[i][half] = fmaf(sum[i][half], factor[i][half], part);
            }
        }
        if (!__any_sync(all_lanes, moved)) return;  // all factors of the sums so far are 1
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll
            for (int j = 0; j < out_blocks; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) out[i][j][e] *= factor[i][e / 2];
            }
        }
    }

    // The whole row's sum.
    __device__ void finish() {
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                sum[i][half] += __shfl_xor_sync(all_lanes, sum[i][half], 1);
                sum[i][half] += __shfl_xor_sync(all_lanes, sum[i][half], 2);
            }
        }
    }
    __device__ float inverse(int i, int half) const { return sum[i][half] == 0 ? 0.0f : 1 / sum[i][half]; }
    __device__ float lse(int i, int half) const {
        return sum[i][half] == 0 ? -infinity : fmaf(maximum[i][half], ln_2, logf(sum[i][half]));
    }
};

}  // namespace
}  // namespace pygpt::cuda

#endif
