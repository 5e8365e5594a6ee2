// The dtypes that CUDA kernels compute with: how they are stored, and the float32 they are computed in.
#ifndef PYGPT_CUDA_NUMBER_CUH
#define PYGPT_CUDA_NUMBER_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/dtype.h"
#include "core/error.h"

namespace pygpt::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ inline float to_float(float value) {
    return value;
}
__device__ inline float to_float(bf16 value) {
    return __bfloat162float(value);
}
__device__ inline float to_float(fp16 value) {
    return __half2float(value);
}

// Rounded to the nearest, ties to even.
template <class Storage>
__device__ inline Storage from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
    return value;
}
template <>
__device__ inline bf16 from_float<bf16>(float value) {
    return __float2bfloat16_rn(value);
}
template <>
__device__ inline fp16 from_float<fp16>(float value) {
    return __float2half_rn(value);
}

// Calls f with a value of the type that a dtype is stored as. Entries refuse the other dtypes (ops/implementation.h).
template <class F>
void with_storage(DType dtype, F&& f) {
    switch (dtype) {
        case DType::float32:
            return f(float{});
        case DType::bfloat16:
            return f(bf16{});
        case DType::float16:
            return f(fp16{});
        default:
            throw TypeError(text("there are no CUDA kernels for ", name(dtype)));
    }
}

}  // namespace pygpt::cuda

#endif
