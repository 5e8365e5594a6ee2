// The addresses that instructions on shared memory take, and loads and stores by them.
#ifndef PYGPT_CUDA_PTX_SHARED_ADDRESS_CUH
#define PYGPT_CUDA_PTX_SHARED_ADDRESS_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// In the shared window, which the compiler works out once for a base and then adds to. sm_80 and up.
__device__ inline std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// ld.shared.v2.f32 and st.shared.v2.f32, at a multiple of 8 bytes. PTX ISA, "Data Movement and Conversion Instructions:
// ld", "st"; sm_80 and up.
__device__ inline float2 load_shared(std::uint32_t from) {
    float2 both;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(both.x), "=f"(both.y) : "r"(from) : "memory");
    return both;
}
__device__ inline void store_shared(std::uint32_t to, float first, float second) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(first), "f"(second) : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
