#include "cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "cuda/error.h"

namespace pygpt::cuda {
namespace {

// The driver's function is asked of the runtime, so that the extension needs no driver to be loaded.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
    static const auto once = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        constexpr unsigned since = 12000;
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, since, cudaEnableDefault, &found));
        if (found != cudaDriverEntryPointSuccess) throw DeviceError("the driver has no tensor maps: it is too old");
        return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    }();
    return once;
}

CUtensorMapDataType type_of(DType dtype) {
    switch (dtype) {
        case DType::float32:
            return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
        case DType::bfloat16:
            return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        case DType::float16:
            return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
        default:
            throw TypeError(text("there are no tensor maps of ", name(dtype)));
    }
}

CUtensorMapSwizzle mode_of(Swizzle swizzle) {
    switch (swizzle) {
        case Swizzle::none:
            break;
        case Swizzle::bytes32:
            return CU_TENSOR_MAP_SWIZZLE_32B;
        case Swizzle::bytes64:
            return CU_TENSOR_MAP_SWIZZLE_64B;
        case Swizzle::bytes128:
            return CU_TENSOR_MAP_SWIZZLE_128B;
    }
    return CU_TENSOR_MAP_SWIZZLE_NONE;
}

}  // namespace

CUtensorMap tensor_map(const TensorBoxes& boxes) {
    cuuint64_t extents[TensorBoxes::most_dimensions];
    cuuint64_t strides[TensorBoxes::most_dimensions];  // in bytes, of all dimensions but the first
    cuuint32_t box[TensorBoxes::most_dimensions];
    cuuint32_t steps[TensorBoxes::most_dimensions];
    for (int i = 0; i < boxes.dimensions; ++i) {
        extents[i] = static_cast<cuuint64_t>(boxes.extents[i]);
        box[i] = static_cast<cuuint32_t>(boxes.box[i]);
        steps[i] = 1;
        if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(boxes.strides[i] * bytes_of(boxes.dtype));
    }
    CUtensorMap map;
    const CUresult result =
        encoder()(&map, type_of(boxes.dtype), static_cast<cuuint32_t>(boxes.dimensions), const_cast<void*>(boxes.data),
                  extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, mode_of(boxes.swizzle),
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        std::string shape, pitch;
        for (int i = 0; i < boxes.dimensions; ++i) {
            shape += text(i ? ", " : "", boxes.extents[i], " in boxes of ", boxes.box[i]);
            pitch += text(i ? ", " : "", boxes.strides[i]);
        }
        throw DeviceError(text("the driver makes no tensor map of ", name(boxes.dtype), " (", shape, "), strides (",
                               pitch, "): error ", static_cast<int>(result)));
    }
    return map;
}

}  // namespace pygpt::cuda
