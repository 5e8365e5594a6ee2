// Host code as an application has it: allocations, <<<>>>, error codes. Prints what came out, a line each.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

__constant__ float factor[2];

__global__ void scale(float* y, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor[0] + factor[1];
}

// Launches that no device takes.
struct Launch {
    const char* what;
    dim3 grid = 1, block = 32, cluster = 1;
    size_t shared = 0;
};
const Launch refused[] = {
    {"no blocks", {1, 0, 1}},
    {"a grid too high", {1, 65536, 1}},
    {"no threads", 1, 0},
    {"1025 threads", 1, 1025},
    {"65 threads deep", 1, {1, 1, 65}},
    {"more threads than the kernel is made for", 1, 288},
    {"more shared memory than without asking, with what is static", 1, 32, 1, (48 << 10) - 1023},
    {"a cluster that does not divide the grid", 3, 32, 2},
    {"a cluster of 16 without asking", 16, 32, 16},
};

__global__ void __launch_bounds__(256) writes(float* y) {
    __shared__ float s[256];
    s[threadIdx.x] = 1;
    y[blockIdx.x * blockDim.x + threadIdx.x] = s[threadIdx.x];
}

cudaError_t launch(const Launch& l, float* y) {
    cudaLaunchAttribute cluster;
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {l.cluster.x, l.cluster.y, l.cluster.z};
    cudaLaunchConfig_t config = {};
    config.gridDim = l.grid;
    config.blockDim = l.block;
    config.dynamicSmemBytes = l.shared;
    config.attrs = &cluster;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, writes, y);
}

int main() {
    const int n = 1000;
    std::vector<float> host(n);
    for (int i = 0; i < n; ++i) host[i] = static_cast<float>(i);
    float *x, *y;
    cudaMalloc(&x, n * sizeof(float));
    cudaMalloc(&y, n * sizeof(float));
    cudaMemcpy(x, host.data(), n * sizeof(float), cudaMemcpyHostToDevice);
    const float factors[2] = {2, 1};
    cudaMemcpyToSymbol(factor, factors, sizeof factors);
    scale<<<8, 128>>>(y, x, n);
    cudaMemcpy(host.data(), y, n * sizeof(float), cudaMemcpyDeviceToHost);
    int wrong = 0;
    for (int i = 0; i < n; ++i) wrong += host[i] != 2.0f * i + 1;
    std::printf("%d wrong, %s\n", wrong, cudaGetErrorString(cudaGetLastError()));

    for (const Launch& l : refused) std::printf("%s: %s\n", l.what, cudaGetErrorName(launch(l, y)));
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    const auto allow = [](cudaFuncAttribute what, int value) {
        return cudaGetErrorName(cudaFuncSetAttribute(writes, what, value));
    };
    std::printf("asking for more shared memory than there is: %s\n",
                allow(cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1));
    const Launch large = {"all shared memory, asked for", 1, 32, 1, static_cast<size_t>(most) - 1024};
    const Launch cluster = {"a cluster of 16, asked for", 16, 32, 16};
    allow(cudaFuncAttributeMaxDynamicSharedMemorySize, most - 1024);  // beside what is static
    allow(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    for (const Launch& l : {large, cluster}) std::printf("%s: %s\n", l.what, cudaGetErrorName(launch(l, y)));
    void* arguments[] = {&y};
    std::printf("a cooperative launch of more blocks than fit: %s\n",
                cudaGetErrorName(cudaLaunchCooperativeKernel(writes, 1 << 20, 32, arguments, 0, nullptr)));

    cudaGetLastError();
    scale<<<8, 128>>>(y, x, n + 1);  // one past the end
    std::printf("%s: %s\n", cudaGetErrorName(cudaPeekAtLastError()), cudaGetErrorString(cudaDeviceSynchronize()));
    return wrong;
}
