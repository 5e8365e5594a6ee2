#include "cuda/devices.h"

#include "cuda/error.h"

namespace pygpt::cuda {
namespace {

DeviceProperties properties(int device) {
    cudaDeviceProp all;
    check(cudaGetDeviceProperties(&all, device));
    return {
        .name = all.name,
        .major = all.major,
        .minor = all.minor,
        .multiprocessors = all.multiProcessorCount,
        .memory_bytes = static_cast<std::int64_t>(all.totalGlobalMem),
        .shared_memory_bytes = static_cast<std::int64_t>(all.sharedMemPerBlockOptin),
    };
}

}  // namespace

Devices devices() {
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        return {{}, cudaGetErrorString(status)};
    }
    Devices out;
    if (count == 0) out.why_none = "no CUDA device was found";
    for (int device = 0; device < count; ++device) out.found.push_back(properties(device));
    return out;
}

}  // namespace pygpt::cuda
