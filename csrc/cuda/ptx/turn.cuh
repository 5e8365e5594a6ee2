// A word in global memory by which blocks of a kernel take turns.
//
// PTX ISA, "Data Movement and Conversion Instructions: ld, st", "Memory Consistency Model"; sm_70 and up. What a thread
// did before it stored is seen by whoever loads what it stored; what bulk copies do stands beyond that: what they
// write is waited for first (tma.cuh), what they read is fenced (proxy_fence.cuh).
#ifndef PYGPT_CUDA_PTX_TURN_CUH
#define PYGPT_CUDA_PTX_TURN_CUH

#include <cstdint>

namespace pygpt::cuda::ptx {

// ld.acquire.gpu
__device__ inline std::uint32_t load_acquire(const std::uint32_t* from) {
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
}

// st.release.gpu
__device__ inline void store_release(std::uint32_t* to, std::uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

}  // namespace pygpt::cuda::ptx

#endif
