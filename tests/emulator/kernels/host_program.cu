// Host code as an application has it: allocations, <<<>>>, error codes. Prints what came out.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

__constant__ float factor[2];

__global__ void scale(float* y, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor[0] + factor[1];
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
    scale<<<8, 128>>>(y, x, n + 1);  // one past the end
    std::printf("%s\n", cudaGetErrorString(cudaDeviceSynchronize()));
    return wrong;
}
