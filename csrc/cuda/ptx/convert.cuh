// Conversions that make operands of matrix instructions, and approximations of the special function unit.
#ifndef PYGPT_CUDA_PTX_CONVERT_CUH
#define PYGPT_CUDA_PTX_CONVERT_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pygpt::cuda::ptx {

// cvt.rn.bf16x2.f32 or cvt.rn.f16x2.f32: two values in one register, the first in its lower half. PTX ISA, "Data
// Movement and Conversion Instructions: cvt"; sm_80 and up.
template <class Storage>
__device__ inline std::uint32_t pack_pair(float first, float second);

template <>
__device__ inline std::uint32_t pack_pair<__nv_bfloat16>(float first, float second) {
    std::uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

template <>
__device__ inline std::uint32_t pack_pair<__half>(float first, float second) {
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}

// ex2.approx.ftz.f32: 2^x, relative error below 2^-22; 0 for -inf. PTX ISA, "Floating Point Instructions: ex2";
// sm_20 and up.
__device__ inline float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// rcp.approx.ftz.f32: 1 / x, within 1 unit of the last place. PTX ISA, "Floating Point Instructions: rcp"; sm_20 and
// up.
__device__ inline float reciprocal_approx(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

// min.NaN.f32: the smaller, and NaN if either is, which fminf would lose. PTX ISA, "Floating Point Instructions: min";
// sm_80 and up.
__device__ inline float min_nan(float a, float b) {
    float smaller;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
    return smaller;
}

}  // namespace pygpt::cuda::ptx

#endif
