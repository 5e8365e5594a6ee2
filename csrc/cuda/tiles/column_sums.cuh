// Sums over many rows, column by column, in two steps: groups of rows, cut by their number alone, are summed by whoever
// reads them, in float32; this adds the groups' sums. Neither order depends on the device.
#ifndef PYGPT_CUDA_TILES_COLUMN_SUMS_CUH
#define PYGPT_CUDA_TILES_COLUMN_SUMS_CUH

#include "cuda/launch.h"
#include "cuda/number.cuh"
#include "cuda/tiles/reduce.cuh"

namespace pygpt::cuda {

constexpr int group_slices = 16;  // of the groups, added side by side and then in order

// out[column] = Σ_group partial[group · stride + column], onto what is there if `add`; `next` is of the `width` columns
// that follow. Both may be null.
template <class Storage>
__global__ void __launch_bounds__(warp_lanes* group_slices)
    column_sums_kernel(const float* partial, Storage* out, Storage* next, std::int64_t groups, std::int64_t stride,
                       std::int64_t width, bool add) {
    __shared__ float sums[group_slices][warp_lanes];
    Storage* const own = blockIdx.y == 0 ? out : next;
    if (own == nullptr) return;
    partial += blockIdx.y * width;
    const std::int64_t column = std::int64_t{blockIdx.x} * warp_lanes + threadIdx.x;
    float sum = 0;
    if (column < width) {
#pragma unroll 8
        for (std::int64_t group = threadIdx.y; group < groups; group += group_slices) {
            sum += partial[group * stride + column];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= width) return;
    for (int slice = 1; slice < group_slices; ++slice) sum += sums[slice][threadIdx.x];
    own[column] = from_float<Storage>(add ? to_float(own[column]) + sum : sum);
}

template <class Storage>
void column_sums(const float* partial, std::int64_t groups, std::int64_t stride, std::int64_t width, Storage* out,
                 Storage* next = nullptr, bool add = false) {
    launch(column_sums_kernel<Storage>,
           {.grid = dim3(static_cast<unsigned>(divide_up(width, warp_lanes)), next == nullptr ? 1 : 2),
            .block = dim3(warp_lanes, group_slices)},
           partial, out, next, groups, stride, width, add);
}

}  // namespace pygpt::cuda

#endif
