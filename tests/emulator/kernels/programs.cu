// Small whole kernels, right ones: for calls, source lines, counters, and the tensor cores.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define KERNEL extern "C" __global__ void

__device__ __noinline__ float horner(const float* c, float x, int n) {
    float y = 0;
    for (int i = n - 1; i >= 0; --i) y = fmaf(y, x, c[i]);
    return y;
}
__device__ __noinline__ float twice(const float* c, float x, int n) {
    return horner(c, x, n) + horner(c, -x, n);
}

// Calls of functions that are not inlined, from diverged lanes.
KERNEL calls(float* out, const float* in) {
    const float x = in[threadIdx.x];
    float y;
    if (threadIdx.x % 3 == 0)
        y = twice(in, x, 4);
    else
        y = horner(in, x, 3);
    out[threadIdx.x] = y;
}

// Mean and scale of rows: what the counters count.
KERNEL layer_norm(float* out, const float* in, int width, float eps) {
    __shared__ float partial[32];
    const float* row = in + static_cast<int64_t>(blockIdx.x) * width;
    const auto block_sum = [&](float v) {
        for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
        __syncthreads();
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
        __syncthreads();
        float t = 0;
        for (int i = 0; i < blockDim.x / 32; ++i) t += partial[i];
        return t;
    };
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
    const float mean = block_sum(sum) / width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (row[i] - mean) * (row[i] - mean);
    const float scale = rsqrtf(block_sum(squares) / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[static_cast<int64_t>(blockIdx.x) * width + i] = (row[i] - mean) * scale;
}

KERNEL bank_conflicts(float* out, const float* in) {
    __shared__ float s[32 * 32];
    for (int i = threadIdx.x; i < 1024; i += 32) s[i] = in[i];
    __syncwarp();
    float sum = 0;
    for (int i = 0; i < 32; ++i) sum += s[threadIdx.x * 32 + i];  // 32 lanes, one bank
    out[threadIdx.x] = sum;
}

KERNEL atomics(float* out, const float* in) {
    atomicAdd(out + threadIdx.x % 4, in[threadIdx.x]);
    atomicMax(reinterpret_cast<int*>(out + 8), static_cast<int>(threadIdx.x + blockIdx.x * blockDim.x));
    atomicAdd(reinterpret_cast<__nv_bfloat162*>(out + 9), __floats2bfloat162_rn(1.0f, 2.0f));
}
