// Maps that tell the copy engine (ptx/tma.cuh) where a tensor lies, and in what boxes it moves.
#ifndef PYGPT_CUDA_TENSOR_MAP_H
#define PYGPT_CUDA_TENSOR_MAP_H

#include <cuda.h>

#include <cstdint>

#include "core/dtype.h"

namespace pygpt::cuda {

// How rows of a box lie in shared memory: densely, or swizzled over this many bytes, which no row is longer than.
enum class Swizzle { none = 0, bytes32 = 32, bytes64 = 64, bytes128 = 128 };

// Innermost dimension first, in elements. The innermost is dense; `data` and strides are multiples of 16 bytes.
struct TensorBoxes {
    static constexpr int most_dimensions = 5;

    const void* data;
    DType dtype;
    int dimensions;
    std::int64_t extents[most_dimensions];
    std::int64_t strides[most_dimensions];  // the first is 1
    int box[most_dimensions];               // 1 to 256 each; the first a multiple of 16 bytes
    Swizzle swizzle;
};

// The driver makes it: this machine needs one. DeviceError with its words where it refuses.
CUtensorMap tensor_map(const TensorBoxes& boxes);

}  // namespace pygpt::cuda

#endif
