// The two products that attention is made of, by a warp, for its own 16 · fragments rows. Accumulators lie as those of
// mma.m16n8k16 do (ptx/mma.cuh): of block (i, j) lane (g, q) has rows g and g + 8 of 16, columns 2q and 2q + 1 of 8.
//
// 16-bit operands go through the tensor cores. float32 takes fused multiply-adds on the same accumulators: what a lane
// needs of its row's weights comes from the three lanes beside it. There so many terms are summed on their own before
// they are added to the sum, which keeps rounding errors from growing with the length.
#ifndef PYGPT_CUDA_ATTENTION_PRODUCTS_CUH
#define PYGPT_CUDA_ATTENTION_PRODUCTS_CUH

#include "cuda/attention/tiles.h"
#include "cuda/ptx/convert.cuh"
#include "cuda/tiles/fragments.cuh"

namespace pygpt::cuda {
namespace {

template <int rows, int columns>
using Accumulators = float[rows][columns][4];

constexpr int terms_in_a_sum = 32;

template <class Storage>
constexpr bool on_tensor_cores = sizeof(Storage) == 2;

template <int rows, int columns>
__device__ void clear(Accumulators<rows, columns>& sums) {
#pragma unroll
    for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int j = 0; j < columns; ++j) {
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
        }
    }
}

// Moves block 1 to the place of block 0, and so on. A loop that works on block 0 and then turns need not be unrolled
// for its accumulators to stay in registers: for code that is long and not often run.
template <int fragments, int blocks>
__device__ void turn(Accumulators<fragments, blocks>& x) {
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float first = x[i][0][e];
#pragma unroll
            for (int j = 0; j < blocks - 1; ++j) x[i][j][e] = x[i][j + 1][e];
            x[i][blocks - 1][e] = first;
        }
    }
}

// Four float32 of a tile's chunk.
template <class Tile>
__device__ float4 chunk_at(const Tile& tile, int row, int chunk) {
    return *reinterpret_cast<const float4*>(tile.bytes + Tile::offset(0, row, chunk));
}

// sums = left[first_row...] · rightᵀ: scores of rows with keys, or of keys with rows
template <class Left, class Right, int fragments, int blocks>
__device__ void multiply_rows(Accumulators<fragments, blocks>& sums, const Left& left, int first_row,
                              const Right& right) {
    using Storage = typename Left::Storage;
    static_assert(Right::rows == blocks * block_columns && Left::columns == Right::columns);
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    clear(sums);
    if constexpr (on_tensor_cores<Storage>) {
        const std::uint32_t left_at = left.address();
        const std::uint32_t right_at = right.address();
#pragma unroll
        for (int k = 0; k < Left::columns; k += 16) {
            RowFragment a[fragments];
#pragma unroll
            for (int i = 0; i < fragments; ++i) load_rows<Left>(a[i], left_at, first_row + 16 * i, k, lane);
#pragma unroll
            for (int j = 0; j < blocks; j += 2) {
                ColumnFragment b;
                load_columns<Right>(b, right_at, 8 * j, k, lane);
#pragma unroll
                for (int i = 0; i < fragments; ++i) {
                    ptx::mma_m16n8k16<Storage>(sums[i][j], a[i], b[0], b[1]);
                    ptx::mma_m16n8k16<Storage>(sums[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
    } else {
        const int g = lane / 4, q = lane % 4;
#pragma unroll 1
        for (int begin = 0; begin < Left::chunks; begin += terms_in_a_sum / 4) {
            Accumulators<fragments, blocks> part;
            clear(part);
#pragma unroll 2
            for (int chunk = begin; chunk < begin + terms_in_a_sum / 4; ++chunk) {
                float4 a[fragments][2];
#pragma unroll
                for (int i = 0; i < fragments; ++i) {
                    a[i][0] = chunk_at(left, first_row + 16 * i + g, chunk);
                    a[i][1] = chunk_at(left, first_row + 16 * i + g + 8, chunk);
                }
#pragma unroll
                for (int j = 0; j < blocks; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const float4 b = chunk_at(right, 8 * j + 2 * q + e, chunk);
#pragma unroll
                        for (int i = 0; i < fragments; ++i) {
#pragma unroll
                            for (int half = 0; half < 2; ++half) {
                                float& sum = part[i][j][2 * half + e];
                                sum = fmaf(a[i][half].x, b.x, sum);
                                sum = fmaf(a[i][half].y, b.y, sum);
                                sum = fmaf(a[i][half].z, b.z, sum);
                                sum = fmaf(a[i][half].w, b.w, sum);
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < fragments; ++i) {
#pragma unroll
                for (int j = 0; j < blocks; ++j) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[i][j][e] += part[i][j][e];
                }
            }
        }
    }
}

// sums += weights · right[:, first_column...]: the weights, as accumulators, are rounded to the dtype.
template <class Right, int fragments, int steps, int blocks>
__device__ void multiply_weights(Accumulators<fragments, blocks>& sums, const Accumulators<fragments, steps>& weights,
                                 const Right& right, int first_column = 0) {
    using Storage = typename Right::Storage;
    static_assert(Right::rows == steps * block_columns);
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    if constexpr (on_tensor_cores<Storage>) {
        const std::uint32_t right_at = right.address();
#pragma unroll
        for (int step = 0; step < steps; step += 2) {
            RowFragment a[fragments];
#pragma unroll
            for (int i = 0; i < fragments; ++i) {
                a[i][0] = ptx::pack_pair<Storage>(weights[i][step][0], weights[i][step][1]);
                a[i][1] = ptx::pack_pair<Storage>(weights[i][step][2], weights[i][step][3]);
                a[i][2] = ptx::pack_pair<Storage>(weights[i][step + 1][0], weights[i][step + 1][1]);
                a[i][3] = ptx::pack_pair<Storage>(weights[i][step + 1][2], weights[i][step + 1][3]);
            }
#pragma unroll
            for (int j = 0; j < blocks; j += 2) {
                ColumnFragment b;
                load_columns_across<Right>(b, right_at, first_column + 8 * j, 8 * step, lane);
#pragma unroll
                for (int i = 0; i < fragments; ++i) {
                    ptx::mma_m16n8k16<Storage>(sums[i][j], a[i], b[0], b[1]);
                    ptx::mma_m16n8k16<Storage>(sums[i][j + 1], a[i], b[2], b[3]);
                }
            }
        }
    } else {
        const int q = lane % 4;
        Accumulators<fragments, steps> left;
#pragma unroll
        for (int i = 0; i < fragments; ++i) {
#pragma unroll
            for (int j = 0; j < steps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) left[i][j][e] = weights[i][j][e];
            }
        }
        static_assert(Right::swizzled == 8);
        const unsigned char* even = right.bytes + first_column * sizeof(float) + q * sizeof(float2);
        const unsigned char* odd = right.bytes + first_column * sizeof(float) + (q ^ 2) * sizeof(float2);
#pragma unroll 1
        for (int step = 0; step < steps; step += 2, even += 16 * Right::row_bytes, odd += 16 * Right::row_bytes) {
            float a[fragments][2][16];
#pragma unroll
            for (int i = 0; i < fragments; ++i) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int k = 0; k < 16; ++k) {
                        a[i][half][k] = __shfl_sync(all_lanes, left[i][k / 8][2 * half + k % 2], lane - q + k % 8 / 2);
                    }
                }
            }
            turn(left);
            turn(left);
#pragma unroll
            for (int j = 0; j < blocks; ++j) {
                float part[fragments][4] = {};
#pragma unroll
                for (int k = 0; k < 16; ++k) {
                    // Of the chunk's number the lowest bit alone, q / 2, depends on the lane: the others are constant
                    // in the swizzle, and two addresses serve all of the loads.
                    const unsigned char* const at = k % 2 ? odd : even;
                    const float2 b =
                        *reinterpret_cast<const float2*>(at + Right::offset(0, k, 2 * j) - k % 2 * chunk_bytes);
#pragma unroll
                    for (int i = 0; i < fragments; ++i) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            part[i][e] = fmaf(a[i][e / 2][k], e % 2 ? b.y : b.x, part[i][e]);
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < fragments; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) sums[i][j][e] += part[i][e];
                }
            }
        }
    }
}

// Puts factor · sums, rounded to the dtype, into rows and columns of a tile. + 0, so that a sum of nothing but
// underflows is +0, with hidden keys between them or without.
template <class Tile, int fragments, int blocks, class Factor>
__device__ void put_rows(Tile& tile, int first_row, int first_column, const Accumulators<fragments, blocks>& sums,
                         Factor factor) {
    using Storage = typename Tile::Storage;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
#pragma unroll
    for (int i = 0; i < fragments; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + 16 * i + 8 * half + lane / 4;
            const float by = factor(i, half);
#pragma unroll
            for (int j = 0; j < blocks; ++j) {
                const int column = first_column + 8 * j + lane % 4 * 2;
                unsigned char* to = tile.bytes + Tile::offset(0, row, column / Tile::chunk_elements) +
                                    column % Tile::chunk_elements * sizeof(Storage);
                const float x = fmaf(sums[i][j][2 * half], by, 0.0f);
                const float y = fmaf(sums[i][j][2 * half + 1], by, 0.0f);
                if constexpr (on_tensor_cores<Storage>) {
                    *reinterpret_cast<std::uint32_t*>(to) = ptx::pack_pair<Storage>(x, y);
                } else {
                    *reinterpret_cast<float2*>(to) = {x, y};
                }
            }
        }
    }
}

}  // namespace
}  // namespace pygpt::cuda

#endif
