// The one way a kernel is launched: on the stream of the call (execution.h), with its shared memory allowed, errors as
// DeviceError.
#ifndef PYGPT_CUDA_LAUNCH_H
#define PYGPT_CUDA_LAUNCH_H

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/error.h"
#include "core/trace.h"
#include "cuda/error.h"
#include "cuda/execution.h"

namespace pygpt::cuda {

struct Launch {
    dim3 grid;
    dim3 block;
    std::size_t shared_bytes = 0;       // dynamic shared memory
    std::size_t most_shared_bytes = 0;  // of any launch of the kernel, where its launches differ
    dim3 cluster = {1, 1, 1};
};

// Shared memory of a block, static included.
constexpr std::size_t shared_bytes_by_default = std::size_t{48} << 10;  // unless its kernel is allowed more
constexpr std::size_t shared_bytes_everywhere = std::size_t{99} << 10;  // at most, on any device since sm_80
constexpr std::size_t shared_bytes_hopper = std::size_t{227} << 10;     // at most, on Hopper

inline void trace_launch(const Launch& shape) {
    const auto sizes = [](const dim3& of) { return text("(", of.x, ", ", of.y, ", ", of.z, ")"); };
    trace::detail(text("grid ", sizes(shape.grid), ", block ", sizes(shape.block), ", cluster ", sizes(shape.cluster),
                       ", ", shape.shared_bytes, " bytes of dynamic shared memory"));
}

// Runs kernel(arguments...) on a grid; a grid without blocks is no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& shape, Arguments&&... arguments) {
    if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
    if (trace::on()) trace_launch(shape);
    // A kernel is allowed this on the device, for all threads: if launches that differ asked for different numbers, one
    // could take from another what that is about to use.
    const std::size_t allowed = std::max(shape.shared_bytes, shape.most_shared_bytes);
    if (allowed > shared_bytes_by_default) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(allowed)));
    }
    cudaLaunchAttribute cluster;
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(execution().stream);
    if (shape.cluster.x * shape.cluster.y * shape.cluster.z > 1) {
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = shape.cluster.x;
        cluster.val.clusterDim.y = shape.cluster.y;
        cluster.val.clusterDim.z = shape.cluster.z;
        config.attrs = &cluster;
        config.numAttrs = 1;
    }
    // As the kernel's own parameter types, whatever the arguments' types are.
    [&](Parameters... values) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
        check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers));
    }(std::forward<Arguments>(arguments)...);
}

// Multiprocessors of the call's device.
inline int multiprocessors() {
    int count;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, execution().device));
    return count;
}

// Zero bytes.
inline void clear(void* memory, std::size_t bytes) {
    if (bytes > 0) check(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(execution().stream)));
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}

}  // namespace pygpt::cuda

#endif
