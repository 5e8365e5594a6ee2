// One lane of a warp, for what one thread does.
#ifndef PYGPT_CUDA_PTX_ELECT_CUH
#define PYGPT_CUDA_PTX_ELECT_CUH

#include <cstdint>

#include "cuda/ptx/sm90a.cuh"

namespace pygpt::cuda::ptx {

// elect.sync: true in one lane, the same one each time; the whole warp executes it. PTX ISA, "Parallel Synchronization
// and Communication Instructions: elect.sync"; sm_90. The compiler knows that one lane is left, unlike after a
// comparison with the lane's number.
__device__ inline bool elect_lane() {
    std::uint32_t chosen;
    asm volatile(
        "{\n"
        ".reg .pred chosen;\n"
        "elect.sync _|chosen, 0xffffffff;\n"
        "selp.b32 %0, 1, 0, chosen;\n"
        "}"
        : "=r"(chosen)::"memory");
    return chosen != 0;
}

}  // namespace pygpt::cuda::ptx

#endif
