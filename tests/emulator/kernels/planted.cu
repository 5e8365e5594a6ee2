// Planted bugs, sm_80: each kernel is wrong in one way if `wrong` is set, often one that hardware would hide, and right
// otherwise. test_planted.py says what each must be reported as. `out` holds 1024 floats and is all zeros, `in` 1024.
#include <cuda_runtime.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

__device__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

KERNEL shared_read_race(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    s[threadIdx.x] = 0;
    __syncthreads();
    s[threadIdx.x] = in[threadIdx.x];
    if (!wrong) __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x];
}

KERNEL shared_write_race(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    float sum = 0;
    for (int i = 0; i < 3; ++i) {
        s[threadIdx.x] = in[i];
        __syncthreads();
        sum += s[127 - threadIdx.x];
        if (!wrong) __syncthreads();  // before the next round overwrites what slower warps still read
    }
    out[threadIdx.x] = sum;
}

// Eight warps read one word; its writer waits for all of them, or for seven: for the eighth a barrier too few.
KERNEL many_readers(float* out, const float* in, int wrong) {
    __shared__ float s;
    const unsigned warp = threadIdx.x / 32;
    if (threadIdx.x == 0) s = in[1];
    __syncthreads();
    out[threadIdx.x] = s;
    if (warp < 7) asm volatile("bar.sync 1, 224;" ::: "memory");
    if (!wrong) __syncthreads();
    if (threadIdx.x == 0) *const_cast<volatile float*>(&s) = 2;
}

KERNEL warp_race(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    s[threadIdx.x] = in[threadIdx.x];
    if (!wrong) __syncwarp();
    out[threadIdx.x] = s[threadIdx.x ^ 1];
}

KERNEL uninitialised(float* out, const float*, int wrong) {
    __shared__ float s[129];
    s[threadIdx.x] = 1;
    if (!wrong && threadIdx.x == 0) s[128] = 2;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x + 1];
}

KERNEL out_of_bounds(float* out, const float*, int wrong) {
    out[1024 - 128 + threadIdx.x + (wrong ? 1 : 0)] = 1;
}

// The last warp's accesses leave the array, which is all the shared memory that the block has.
KERNEL shared_out_of_bounds(float* out, const float* in, int wrong) {
    __shared__ float s[128];
    *const_cast<volatile float*>(s + threadIdx.x + (wrong ? 1 : 0)) = in[threadIdx.x];
    out[threadIdx.x] = 1;
}

// Indexed at run time, so that the array lies in local memory. -1 is in front of all that a thread has.
KERNEL local_out_of_bounds(float* out, const float* in, int wrong) {
    float mine[4] = {1, 2, 3, 4};
    mine[static_cast<int>(in[threadIdx.x]) % 4] = 5;
    out[threadIdx.x] = mine[static_cast<int>(in[threadIdx.x]) % 4 - (wrong ? 4 : 0)];
}

// Behind the last parameter.
KERNEL parameter_out_of_bounds(float* out, const float* in, const __grid_constant__ int wrong) {
    const int* behind = &wrong + (wrong ? 1 + static_cast<int>(in[threadIdx.x]) : 0);
    out[threadIdx.x] = 1 + *behind;
}

KERNEL misaligned(float* out, const float*, int wrong) {
    float4* p = reinterpret_cast<float4*>(out + (wrong ? 1 : 0));
    p[threadIdx.x] = make_float4(1, 2, 3, 4);
}

KERNEL read_only(float* out, const float* in, int wrong) {
    if (wrong) const_cast<float*>(in)[threadIdx.x] = 1;
    out[threadIdx.x] = 1;
}

KERNEL divergent_barrier(float* out, const float*, int wrong) {
    if (!wrong || threadIdx.x % 2) asm volatile("bar.sync 0;");
    out[threadIdx.x] = 1;
}

KERNEL named_barriers(float* out, const float*, int wrong) {
    if (threadIdx.x < 64)
        asm volatile("bar.sync 1, 128;");
    else if (wrong)
        asm volatile("bar.sync 2, 128;");
    else
        asm volatile("bar.sync 1, 128;");
    out[threadIdx.x] = 1;
}

KERNEL barrier_count(float* out, const float*, int wrong) {
    const int first = 64, second = wrong ? 96 : 64;
    if (threadIdx.x < 32)
        asm volatile("bar.sync 1, %0;" ::"r"(first));
    else if (threadIdx.x < 64)
        asm volatile("bar.sync 1, %0;" ::"r"(second));
    out[threadIdx.x] = 1;
}

KERNEL shuffle_absent(float* out, const float* in, int wrong) {
    float v = in[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_sync(0xffff, v, wrong ? 20 : 10);
    out[threadIdx.x] = v;
}

KERNEL mask_stranger(float* out, const float* in, int wrong) {
    float v = in[threadIdx.x];
    v = __shfl_xor_sync(wrong ? 0x7fffffff : 0xffffffff, v, 1);
    out[threadIdx.x] = v;
}

KERNEL copy_without_wait(float* out, const float* in, int wrong) {
    __shared__ __align__(16) float s[512];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 4 * threadIdx.x)),
                 "l"(in + 4 * threadIdx.x));
    asm volatile("cp.async.commit_group;");
    if (wrong)
        asm volatile("cp.async.wait_group 1;");
    else
        asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    out[threadIdx.x] = s[511 - threadIdx.x];
}

// The wait comes after the barrier: own data has landed, that of other warps may not have.
KERNEL copy_wait_after_barrier(float* out, const float* in, int wrong) {
    __shared__ __align__(16) float s[512];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 4 * threadIdx.x)),
                 "l"(in + 4 * threadIdx.x));
    asm volatile("cp.async.commit_group;");
    if (wrong) __syncthreads();
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    if (!wrong) __syncthreads();
    out[threadIdx.x] = s[4 * ((threadIdx.x + 32) % 128)];  // of the next warp
}

// ---- Between blocks
KERNEL global_write_race(float* out, const float*, int wrong) {
    out[wrong ? threadIdx.x : blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

KERNEL global_read_race(float* out, const float* in, int wrong) {
    const float v = wrong && blockIdx.x == 1 ? out[threadIdx.x] : in[threadIdx.x];
    if (blockIdx.x == 0)
        out[threadIdx.x] = v;
    else
        out[512 + threadIdx.x] = v;
}

// 16-bit results of two blocks side by side in one word are no race.
KERNEL neighbours(float* out, const float*, int wrong) {
    uint16_t* halves = reinterpret_cast<uint16_t*>(out);
    if (threadIdx.x == 0) halves[wrong ? 0 : blockIdx.x] = 1;
}

// Block `from` hands 128 numbers to the other one through a flag, which is out[1023].
__device__ void hand_over(float* out, const float* in, int from, bool released, bool gathered) {
    unsigned* flag = reinterpret_cast<unsigned*>(out + 1023);
    if (static_cast<int>(blockIdx.x) == from) {
        out[threadIdx.x] = in[threadIdx.x] + 1;
        if (gathered) __syncthreads();
        if (threadIdx.x == 0) {
            if (released)
                asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
            else
                asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
        }
    } else {
        if (threadIdx.x == 0) {
            unsigned seen = 0;
            while (!seen) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
        }
        __syncthreads();
        out[512 + threadIdx.x] = out[threadIdx.x] + 1;
    }
}
KERNEL hand_over_up(float* out, const float* in, int wrong) {
    hand_over(out, in, 0, !wrong, true);
}
KERNEL hand_over_down(float* out, const float* in, int wrong) {
    hand_over(out, in, 1, !wrong, true);
}
// The release covers what its own warp wrote; the other warps' writes need the barrier before it.
KERNEL hand_over_ungathered(float* out, const float* in, int wrong) {
    hand_over(out, in, 0, true, !wrong);
}

// The last block to finish adds up what all have written: fence, barrier, atomic, fence (threadFenceReduction).
KERNEL last_block(float* out, const float* in, int wrong) {
    __shared__ unsigned ticket;
    out[blockIdx.x * 128 + threadIdx.x] = in[threadIdx.x];
    if (!wrong) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) ticket = atomicAdd(reinterpret_cast<unsigned*>(out + 1023), 1u);
    __syncthreads();
    if (ticket == gridDim.x - 1) {
        __threadfence();
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) sum += out[b * 128 + threadIdx.x];
        out[512 + threadIdx.x] = sum;
    }
}

// Atomic additions of four warps to one number: whole, but the bits of a sum of floats follow their order.
KERNEL sum_of_warps(float* out, const float* in, int wrong) {
    for (unsigned w = 0; w < 4; ++w) {
        if (threadIdx.x == 32 * w) atomicAdd(out, in[w] + 0.1f);
        if (!wrong) __syncthreads();
    }
}

// Every block waits until all have arrived: right while all are resident, which 40 KiB of shared memory limits.
KERNEL grid_barrier(float* out, const float*, int) {
    __shared__ float big[10240];
    big[threadIdx.x] = 1;
    unsigned* count = reinterpret_cast<unsigned*>(out + 1023);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(count, 1u);
        unsigned seen = 0;
        while (seen < gridDim.x)
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
    }
    __syncthreads();
    if (blockIdx.x == 0) out[threadIdx.x] = big[threadIdx.x];
}

// A lane waits for another of its warp: since Volta each makes progress.
KERNEL lane_waits_for_lane(float* out, const float*, int wrong) {
    volatile unsigned* flag = reinterpret_cast<volatile unsigned*>(out + 1023);
    if (threadIdx.x == 0) {
        while (*flag == 0) {
        }
    } else if (threadIdx.x == 1 && !wrong) {
        *flag = 1;
    }
    out[threadIdx.x] = 1;
}
