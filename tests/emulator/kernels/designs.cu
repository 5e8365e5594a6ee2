// Pairs of designs that differ clearly in time, for the timing model: each kernel computes the same whether `worse` or
// not. One block of 128 threads, `in` and `out` of 16 x 512 numbers.
#include <cuda_runtime.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

constexpr int kTiles = 16, kTile = 512;

// Columns of a tile in shared memory, written by rows: all in one bank, or swizzled.
KERNEL columns(float* out, const float* in, int worse) {
    __shared__ float s[32 * 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto place = [&](int row, int column) { return 32 * row + (worse ? column : column ^ row); };
    float sum = 0, x = in[threadIdx.x];
    for (int tile = 0; tile < kTiles / 2; ++tile) {
        __syncthreads();
        for (int row = warp; row < 32; row += 4) s[place(row, lane)] = x++;
        __syncthreads();
        for (int column = warp; column < 32; column += 4) sum += s[place(lane, column)];
    }
    out[blockIdx.x * 128 + threadIdx.x] = sum;
}

// Loads that wait for one another (the address holds a zero that the compiler does not know), or that are in flight
// together.
KERNEL loads(float* out, const float* in, int worse) {
    float sum = 0;
    int zero = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float x = in[512 * i + threadIdx.x + zero];
        if (worse) zero = x == 12345.0f;
        sum += x;
    }
    out[blockIdx.x * 128 + threadIdx.x] = sum;
}

// Tiles copied into shared memory by cp.async: one at a time, or the next ones while this one is summed up.
KERNEL copies(float* out, const float* in, int worse) {
    constexpr int kStages = 4;
    __shared__ __align__(16) float s[kStages][kTile];
    const auto fetch = [&](int tile) {
        if (tile < kTiles)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                             static_cast<uint32_t>(__cvta_generic_to_shared(&s[tile % kStages][4 * threadIdx.x]))),
                         "l"(in + kTile * tile + 4 * threadIdx.x)
                         : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    if (!worse)
        for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
    float sum = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
        if (worse) fetch(tile);
        if (worse)
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        else
            asm volatile("cp.async.wait_group 2;" ::: "memory");
        __syncthreads();
        for (int i = 0; i < 4; ++i) sum += s[tile % kStages][128 * i + threadIdx.x];
        __syncthreads();
        if (!worse) fetch(tile + kStages - 1);
    }
    out[blockIdx.x * 128 + threadIdx.x] = sum;
}
