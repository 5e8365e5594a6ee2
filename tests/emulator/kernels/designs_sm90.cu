// Pairs of designs for the timing model, sm_90a. As designs.cu.
#include <cuda_runtime.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

constexpr int kTiles = 16, kTile = 512;

__device__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A ring of bulk loads: one stage, or four.
KERNEL ring(float* out, const float* in, int worse) {
    __shared__ __align__(128) float s[4][kTile];
    __shared__ uint64_t full[4];
    const int stages = worse ? 1 : 4;
    const auto fetch = [&](int tile) {
        const uint32_t bar = shared_address(&full[tile % stages]);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(4 * kTile) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(s[tile % stages])),
                     "l"(in + kTile * tile), "r"(4 * kTile), "r"(bar)
                     : "memory");
    };
    if (threadIdx.x == 0) {
        for (int i = 0; i < 4; ++i)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + i)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        for (int tile = 0; tile < stages; ++tile) fetch(tile);
    }
    __syncthreads();
    float sum = 0;
    for (int tile = 0; tile < kTiles; ++tile) {
        unsigned done = 0;
        while (!done)
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(done)
                         : "r"(shared_address(&full[tile % stages])), "r"(tile / stages % 2)
                         : "memory");
        for (int i = 0; i < 4; ++i) sum += s[tile % stages][128 * i + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0 && tile + stages < kTiles) fetch(tile + stages);
    }
    out[threadIdx.x] = sum;
}

// Sixteen products (64, 16) (16, 16) into one accumulator: each waited for, or all at the end. K-major, no swizzle.
KERNEL products(float* out, const float* in, int worse) {
    __shared__ __align__(128) float a[64 * 8], b[16 * 8];  // pairs of bf16
    for (int i = threadIdx.x; i < 64 * 8; i += 128) a[i] = in[i];
    for (int i = threadIdx.x; i < 16 * 8; i += 128) b[i] = in[i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const auto descriptor = [](const float* p, uint64_t leading) {
        return static_cast<uint64_t>(shared_address(p) >> 4) | leading << 16 | 8ull << 32;
    };
    float d[8] = {};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll 1
    for (int i = 0; i < 16; ++i) {
        asm volatile(
            "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, 1, 1, 1, "
            "0, 0;"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "l"(descriptor(a, 64)), "l"(descriptor(b, 16))
            : "memory");
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        if (worse) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    float sum = 0;
    for (int i = 0; i < 8; ++i) sum += d[i];
    out[threadIdx.x] = sum;
}
