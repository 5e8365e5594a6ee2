// A CUDA runtime call that failed, as a DeviceError in the runtime's words.
#ifndef PYGPT_CUDA_ERROR_H
#define PYGPT_CUDA_ERROR_H

#include <cuda_runtime_api.h>

#include "core/error.h"

namespace pygpt::cuda {

inline void check(cudaError_t status) {
    if (status == cudaSuccess) return;
    const std::string words = cudaGetErrorString(status);
    cudaGetLastError();  // or the next call would report it again
    throw DeviceError(words);
}

}  // namespace pygpt::cuda

#endif
