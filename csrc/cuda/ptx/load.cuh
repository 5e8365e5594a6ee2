// Loads from global memory with a word on how long what was read will be needed.
#ifndef PYGPT_CUDA_PTX_LOAD_CUH
#define PYGPT_CUDA_PTX_LOAD_CUH

#include <vector_types.h>

namespace pygpt::cuda::ptx {

// ld.global.nc.L1::no_allocate: 16 aligned bytes that nobody writes while the kernel runs and that are read once: they
// take no place in the L1 cache. PTX ISA, "Data Movement and Conversion Instructions: ld.global.nc"; sm_70 and up.
__device__ inline uint4 load_once(const void* from) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}

}  // namespace pygpt::cuda::ptx

#endif
